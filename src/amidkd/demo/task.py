"""The demo's task: short instructions with checkable answers, made by rule.

As a module it writes the files that ``recipes/demo_teacher.yaml`` trains the packaged teacher on::

    python -m amidkd.demo.task runs/demo_task
"""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Literal, TypedDict

from amidkd.demo.skills import SKILLS, Skill
from amidkd.errors import SettingError
from amidkd.record import write_json_lines

__all__ = ["PROMPT_TEMPLATE", "TaskRow", "main", "make_rows", "split_of", "write_task"]

PROMPT_TEMPLATE = "<s>{prompt}<answer>"
"""How every model of the demo reads a prompt."""

Split = Literal["train", "validation", "test"]

TEACHER_SEED, TEACHER_ROWS, VALIDATION_ROWS = 1, 96_000, 1_000
# Skills that work on a list of words take far more rows to learn than those that look up one word.
TEACHER_WEIGHTS = dict.fromkeys(("sort", "reverse", "position", "longest", "odd one out", "how many", "remove"), 4)
_TRIES = 200


class TaskRow(TypedDict):
    """A row of the task's files."""

    prompt: str
    completion: str
    references: list[str]
    skill: str


def split_of(prompt: str) -> Split:
    """The split that a prompt belongs to, by its hash: 80 % train, 10 % validation, 10 % test.

    It depends on nothing else, so that no seed and no number of rows can put a test prompt into training.
    """
    bucket = int.from_bytes(hashlib.sha256(prompt.encode("utf-8")).digest()[:8], "big") % 10
    return "test" if bucket == 0 else ("validation" if bucket == 1 else "train")


def make_rows(
    seed: int, n: int, split: Split, *, distinct: bool = True, weights: Mapping[str, int] | None = None
) -> list[TaskRow]:
    """Make rows.

    Args:
        seed: Seed of everything drawn.
        n: Number of rows.
        split: Which prompts may occur (see :func:`split_of`).
        distinct: Each prompt once; a skill that has no new prompt left is then drawn no more. Otherwise a prompt
            may come again, with whichever right answer is drawn then.
        weights: How often a skill is drawn beside those not named, which count 1; default: all evenly.

    Returns:
        Rows whose ``completion`` is one of the right answers, drawn evenly, and whose ``references`` are all of them.

    Raises:
        SettingError: There are fewer distinct prompts than rows asked for.

    Example:
        >>> row = make_rows(0, 1, "test")[0]
        >>> row["completion"] in row["references"]
        True
    """
    rng = Random(f"{split} {seed}")
    pool: list[Skill] = [skill for skill in SKILLS for _ in range((weights or {}).get(skill.name, 1))]
    seen: set[str] = set()
    rows: list[TaskRow] = []
    while len(rows) < n:
        if not pool:
            raise SettingError(f"the task has {len(rows)} prompts in its {split} split; {n} were asked for")
        skill = rng.choice(pool)
        row = _new_row(skill, rng, seen, split)
        if row is None:
            pool = [other for other in pool if other is not skill]
        else:
            rows.append(row)
            if distinct:
                seen.add(row["prompt"])
    return rows


def _new_row(skill: Skill, rng: Random, seen: set[str], split: Split) -> TaskRow | None:
    """A row of this skill with a prompt not seen before, or None where none turns up."""
    for _ in range(_TRIES):
        prompt, answers = skill.ask(rng)
        if prompt not in seen and split_of(prompt) == split:
            return TaskRow(prompt=prompt, completion=rng.choice(answers), references=list(answers), skill=skill.name)
    return None


def write_task(folder: Path) -> None:
    """Write what the teacher's recipe needs: ``train.jsonl``, ``validation.jsonl`` and ``tokenizer/``.

    Args:
        folder: Where to; made if absent.
    """
    from amidkd.demo.tokenizer import build_tokenizer

    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(
        folder / "train.jsonl", make_rows(TEACHER_SEED, TEACHER_ROWS, "train", distinct=False, weights=TEACHER_WEIGHTS)
    )
    write_json_lines(folder / "validation.jsonl", make_rows(TEACHER_SEED, VALIDATION_ROWS, "validation"))
    build_tokenizer().save_pretrained(folder / "tokenizer")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the task's files into a folder named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m amidkd.demo.task", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where the files go")
    write_task(parser.parse_args(arguments).folder)


if __name__ == "__main__":
    main()
