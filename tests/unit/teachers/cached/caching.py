"""A tiny teacher and rows of it, cached; as a script, one process that writes the cache: RANK WORLD FOLDER [KILL].

With KILL the process ends by SIGKILL once so many files have their names and the next one is half written.
"""

import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from amidkd.config import CachedTeacher as CachedTeacherConfig
from amidkd.data import Example
from amidkd.teachers import LiveTeacher
from amidkd.teachers.cached import (
    CachedTeacher,
    CacheSettings,
    Manifest,
    Plan,
    entries_of,
    open_cache,
    plan_cache,
    write_cache,
)
from amidkd.teachers.cached.shards import ShardWriter
from tiny_world import WORDS, make_model, make_tokenizer

VOCABULARY = 5 + len(WORDS)
PADDED = VOCABULARY + 7
SHARD_ROWS = 9


def rows(count: int = 40, *, seed: int = 0) -> list[Example]:
    """Rows of different lengths, in some of which there are gaps between what is supervised."""
    draw = random.Random(seed)
    made = []
    for row in range(count):
        length = draw.randint(4, 30)
        tokens = tuple(draw.randrange(3, VOCABULARY) for _ in range(length))
        prompt = draw.randint(1, 3)
        targets = tuple(place >= prompt and (row % 3 > 0 or place % 2 > 0) for place in range(length))
        made.append(Example(tokens, targets, row))
    return made


def teacher(dtype: torch.dtype = torch.float32, model: torch.nn.Module | None = None) -> LiveTeacher:
    model = make_model(width=16, layers=2, seed=3, padded_vocab=PADDED) if model is None else model
    return LiveTeacher(model.to(dtype), make_tokenizer(), vocab_size=VOCABULARY)


def settings(
    format: str = "top_k", top_k: int = 4, *, template: str = "{prompt}", batch_size: int = 4
) -> CacheSettings:
    return CacheSettings(
        format=format,
        top_k=top_k,
        batch_size=batch_size,
        shard_rows=SHARD_ROWS,
        tokenizer=make_tokenizer(),
        templates={"prompt_template": template},
        name="tiny",
        pad_id=0,
        device="cpu",
    )


def planned(live: LiveTeacher, made: CacheSettings, examples: list[Example] | None = None) -> Plan:
    return plan_cache(entries_of(rows() if examples is None else examples), teacher=live, settings=made)


def written(
    folder: Path, live: LiveTeacher, made: CacheSettings, examples: list[Example] | None = None, **processes: int
) -> Manifest:
    plan = planned(live, made, examples)
    return write_cache(plan, teacher=live, settings=made, folder=folder, **processes)


def opened(folder: Path, format: str = "top_k", top_k: int = 4, **fields: object) -> CachedTeacher:
    config = CachedTeacherConfig(folder=str(folder), format=format, top_k=top_k, **fields)
    return open_cache(config, student_tokenizer=make_tokenizer(), folder=folder.parent)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_in_file(number: int) -> None:
    close, done = ShardWriter.close, []

    def last(self: ShardWriter) -> None:
        if len(done) == number:
            self._flush()
            os.kill(os.getpid(), signal.SIGKILL)
        close(self)
        done.append(self)

    ShardWriter.close = last


if __name__ == "__main__":
    rank, world, folder, *kill = sys.argv[1:]
    if kill:
        kill_in_file(int(kill[0]))
    written(Path(folder), teacher(), settings(), rank=int(rank), world=int(world))
