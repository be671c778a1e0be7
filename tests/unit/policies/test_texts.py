"""Text is written once, survives a kill at any moment, and is learnt as it was said."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.config import DataConfig, GenerationConfig
from amidkd.data import Encoder, Row, load_rows
from amidkd.errors import SettingError, SettingWarning
from amidkd.generation import GenerationError, Prompts
from amidkd.generation.transformers import TransformersGenerator
from amidkd.policies import Answer, TextSettings, answer_examples, read_answers, write_answers
from amidkd.policies.texts import identity

EOS, BOS = 0, 1
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sits", "runs"]
CONFIG = GenerationConfig(max_new_tokens=6, batch_size=3, seed=5)


@dataclass(frozen=True)
class World:
    model: Any
    tokenizer: Any
    encoder: Encoder
    rows: list[Row]

    def settings(self, **changes: Any) -> TextSettings:
        given = {
            "writer": "teacher-1",
            "origin": "teacher",
            "name": "models/teacher",
            "tokenizer": self.tokenizer,
            "encoder": self.encoder,
            "config": CONFIG,
            "eos_ids": [EOS],
            "vocab_size": len(self.tokenizer),
            "context": 24,
        }
        return TextSettings(**(given | changes))

    def engine(self, settings: TextSettings) -> TransformersGenerator:
        return TransformersGenerator(
            settings.config, model=self.model, eos_ids=settings.eos_ids, pad_id=EOS, vocab_size=settings.vocab_size
        )

    def write(self, folder: Path, *, rows: list[Row] | None = None, engine: Any = None, **changes: Any) -> int:
        own = {name: changes.pop(name) for name in ("progress", "rank", "world", "shard_size") if name in changes}
        settings = self.settings(**changes)
        make = (lambda: self.engine(settings)) if engine is None else engine
        rows = self.rows if rows is None else rows
        return write_answers(rows, settings=settings, generator=make, folder=folder, **({"shard_size": 20} | own))


def make_world() -> World:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({t: i for i, t in enumerate(["</s>", "<s>", "<sep>", *WORDS])}, unk_token="red"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="</s>", extra_special_tokens=["<sep>"]
    )
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    encoder = Encoder(tokenizer, DataConfig(train="x", prompt_template="<s> {prompt} <sep>", max_length=20))
    rows = [Row(index=10 + i, where=f"p.jsonl, line {i + 1}", prompt=" ".join(WORDS[: 1 + i % 5])) for i in range(60)]
    return World(LlamaForCausalLM(shape).eval(), tokenizer, encoder, rows)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.fixture(scope="module")
def written(world, tmp_path_factory) -> Path:
    """A complete folder, which tests only read."""
    folder = tmp_path_factory.mktemp("written") / "texts"
    assert world.write(folder) == 60
    return folder


class KilledError(Exception):
    """Raised in the middle of the work."""


def never() -> Any:
    raise AssertionError("nobody is asked")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_answers_say_what_the_model_said(world, written) -> None:
    answers = read_answers(written)
    assert [answer.row for answer in answers] == [row.index for row in world.rows]
    assert [answer.where for answer in answers] == [row.where for row in world.rows]
    assert {answer.origin for answer in answers} == {"teacher"}
    for row, answer in zip(world.rows, answers, strict=True):
        assert list(answer.prompt_tokens) == world.encoder.prompt_tokens(row)
        assert answer.prompt == row.prompt
        assert answer.finished == (answer.completion_tokens[-1] == EOS)
        assert EOS not in answer.completion_tokens[:-1]
        assert answer.length == len(answer.completion_tokens)
        assert answer.finished or answer.length == 6
        assert answer.completion == world.tokenizer.decode([t for t in answer.completion_tokens if t > 2])
    assert 0 < sum(answer.finished for answer in answers) < 60


def test_the_folder_says_what_made_it(world, written) -> None:
    assert sorted(contents(written)) == ["manifest.json", *(f"shard-0000{n}.parquet" for n in range(3))]
    manifest = json.loads((written / "manifest.json").read_text())
    made = manifest["made_with"]
    assert (made["origin"], made["writer"], made["prompt_template"]) == ("teacher", "teacher-1", "<s> {prompt} <sep>")
    assert (made["seed"], made["temperature"], made["eos_ids"], made["vocab_size"]) == (5, 1.0, [EOS], 11)
    assert (manifest["answers"], manifest["shards"], manifest["complete"]) == (60, 3, True)
    assert manifest["information"]["versions"]["torch"] == torch.__version__


def test_greedy_answers_are_the_models_own(world, tmp_path) -> None:
    world.write(tmp_path / "texts", config=GenerationConfig(max_new_tokens=3, temperature=0, batch_size=7))
    for answer in read_answers(tmp_path / "texts")[:6]:
        tokens = list(answer.prompt_tokens)
        for said in answer.completion_tokens:
            with torch.no_grad():
                logits = world.model(input_ids=torch.tensor([tokens])).logits[0, -1, : len(world.tokenizer)]
            assert said == int(logits.argmax())
            tokens.append(said)


@pytest.mark.parametrize("batches", [1, 7, 8, 20])
def test_a_killed_call_goes_on_after_its_last_batch_to_the_same_bytes(world, written, tmp_path, batches) -> None:
    killed = tmp_path / "killed"
    done = []

    def die(answers: int, tokens: int) -> None:
        done.append(answers)
        if len(done) == batches:
            raise KilledError

    with pytest.raises(KilledError):
        world.write(killed, progress=die)
    with pytest.raises(SettingError, match="not complete; run `amidkd generate` again"):
        read_answers(killed)
    with pytest.raises(SettingError, match="not complete"):
        load_rows(killed)
    again = []
    assert world.write(killed, progress=lambda answers, tokens: again.append((answers, tokens))) == 60
    assert contents(killed) == contents(written)
    assert sum(answers for answers, tokens in again if tokens == 0) == sum(done), "what was saved is not made again"
    assert sum(answers for answers, tokens in again if tokens) == 60 - sum(done)


def test_sigkill_costs_nothing_that_was_saved(world, written, tmp_path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_texts import make_world\n"
        "count = []\n"
        "def die(answers, tokens):\n"
        "    count.append(answers)\n"
        "    if len(count) == 9:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        f"make_world().write(Path({str(tmp_path / 'killed')!r}), progress=die)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    made = []
    world.write(tmp_path / "killed", progress=lambda answers, tokens: made.append(answers if tokens else 0))
    assert sum(made) == 60 - 20 - 2 * 3  # a shard of 20 in seven batches, and two batches of the next
    assert contents(tmp_path / "killed") == contents(written)


@pytest.mark.parametrize(("cut", "tail"), [(0, b"[[31,0,[4,5"), (1, b""), (9, b"\n"), (0, b"\0\0\0\n")])
def test_a_line_that_was_cut_off_is_made_again(world, written, tmp_path, cut, tail) -> None:
    def die(answers: int, tokens: int) -> None:
        if (tmp_path / "cut" / "shard-00000.parquet").is_file():
            raise KilledError

    with pytest.raises(KilledError):
        world.write(tmp_path / "cut", progress=die)
    (journal,) = (tmp_path / "cut").glob(".*.jsonl")
    saved = journal.read_bytes()
    journal.write_bytes(saved[: len(saved) - cut] + tail)
    made = []
    world.write(tmp_path / "cut", progress=lambda answers, tokens: made.append(answers if tokens else 0))
    assert sum(made) == (40 if cut else 37)
    assert contents(tmp_path / "cut") == contents(written)


@pytest.mark.parametrize("number", [1, 2, 9, 10])
def test_a_full_disk_loses_nothing_that_was_saved(world, written, tmp_path, monkeypatch, number) -> None:
    """The first fsync is the manifest's, the ninth a shard's, the others are those of batches."""
    calls, flush = [], os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) >= number:
            raise OSError(28, "No space left on device")
        flush(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            world.write(tmp_path / "full")
    made = []
    assert world.write(tmp_path / "full", progress=lambda answers, tokens: made.append(answers if tokens else 0)) == 60
    assert sum(made) <= 60 - {1: 0, 2: 0, 9: 20, 10: 20}[number]
    assert contents(tmp_path / "full") == contents(written)


def test_an_engine_that_is_gone_stops_the_call_and_the_next_goes_on(world, written, tmp_path) -> None:
    @dataclass
    class Failing:
        calls: int = 0
        closed: bool = False

        def __call__(self, prompts: Prompts, progress: Any = None) -> list[list[int]]:
            self.calls += 1
            if self.calls == 3:
                raise GenerationError("the server is gone")
            return world.engine(world.settings())(prompts)

        def update_weights(self, version: int) -> None:
            assert version == 0

        def close(self) -> None:
            self.closed = True

    failing, made = Failing(), []
    with pytest.raises(GenerationError):
        world.write(tmp_path / "texts", engine=lambda: failing)
    assert failing.closed
    world.write(tmp_path / "texts", progress=lambda answers, tokens: made.append(answers if tokens else 0))
    assert sum(made) == 60 - 2 * 3
    assert contents(tmp_path / "texts") == contents(written)


def test_processes_share_the_shards(world, written, tmp_path) -> None:
    made = {0: 0, 1: 0}
    counts = []

    def work(rank: int) -> None:
        def count(answers: int, tokens: int) -> None:
            made[rank] += answers

        counts.append(world.write(tmp_path / "two", rank=rank, world=2, progress=count))

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert counts == [60, 60]
    assert made == {0: 40, 1: 20}
    assert contents(tmp_path / "two") == contents(written)


def test_a_complete_folder_is_not_made_again(world, tmp_path) -> None:
    folder, counted = tmp_path / "texts", []
    world.write(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert world.write(folder, engine=never, progress=lambda *n: counted.append(n)) == 60
    assert counted == [(60, 0)]
    assert world.write(folder, engine=never, config=CONFIG.model_copy(update={"batch_size": 50}), shard_size=7) == 60
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"writer": "teacher-2"}, r"writer .*: 'teacher-1' there, 'teacher-2' now"),
        (
            {"config": CONFIG.model_copy(update={"temperature": 0.5})},
            r"generation\.temperature: 1\.0 .* 0\.5 now",
        ),
        ({"config": CONFIG.model_copy(update={"seed": 6})}, r"data\.generation\.seed: 5 there, 6 now"),
        (
            {"config": CONFIG.model_copy(update={"samples_per_prompt": 2})},
            r"samples_per_prompt: 1 .* 2 now",
        ),
        ({"eos_ids": [EOS, 4]}, r"eos_ids: \[0\] there, \[0, 4\] now"),
        ({"vocab_size": 9}, r"vocab_size: 11 there, 9 now"),
        ({"origin": "student"}, r"origin \(policy\.writer\): 'teacher' there, 'student' now"),
    ],
)
def test_a_folder_made_with_other_settings_is_refused(world, written, tmp_path, changes, message, complete) -> None:
    def die(answers: int, tokens: int) -> None:
        raise KilledError

    folder = written
    if not complete:
        folder = tmp_path / "texts"
        with pytest.raises(KilledError):
            world.write(folder, progress=die)
    before = contents(folder)
    with pytest.raises(SettingError, match=message + r"[\s\S]*Set these back, or remove the folder"):
        world.write(folder, engine=never, **changes)
    assert contents(folder) == before


def test_every_field_that_differs_is_named(world, written) -> None:
    other = Encoder(world.tokenizer, DataConfig(train="x", prompt_template="<s> {prompt}", max_length=20))
    with pytest.raises(SettingError) as caught:
        world.write(written, writer="b", encoder=other, rows=world.rows[:-1])
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:-1]] == [
        "writer",
        "prompt_template",
        "prompts",
    ]


def test_text_is_read_where_it_is_that_writers_to_those_prompts(world, written) -> None:
    prompts = list(zip(world.rows, world.encoder.prompts_tokens(world.rows), strict=True))
    whose: dict[str, Any] = {"origin": "teacher", "tokenizer": world.tokenizer, "encoder": world.encoder}
    for writer in ("teacher-1", None):
        assert len(read_answers(written, expected=identity(prompts, writer=writer, **whose))) == 60
    wrong = {
        "writer": identity(prompts, writer="teacher-2", **whose),
        "origin": identity(prompts, writer=None, **(whose | {"origin": "student"})),
        "prompts": identity(prompts[:-1], writer=None, **whose),
    }
    for name, expected in wrong.items():
        with pytest.raises(SettingError, match=rf"{name} \([\s\S]*leave policy\.folder out"):
            read_answers(written, expected=expected)


def test_a_tokenizer_with_another_word_is_another_tokenizer(world) -> None:
    other = make_world().tokenizer
    whose: dict[str, Any] = {"origin": "teacher", "writer": None, "encoder": world.encoder}
    assert identity([], tokenizer=other, **whose) == identity([], tokenizer=world.tokenizer, **whose)
    other.add_tokens(["fox"])
    assert identity([], tokenizer=other, **whose) != identity([], tokenizer=world.tokenizer, **whose)


def test_a_folder_that_is_none_of_ours_is_refused(world, tmp_path) -> None:
    with pytest.raises(SettingError, match="no folder of written text"):
        read_answers(tmp_path / "absent")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    with pytest.raises(SettingError, match="something else than written text"):
        world.write(tmp_path / "foreign")
    (tmp_path / "foreign" / "manifest.json").write_text('{"rows": 3}')
    with pytest.raises(SettingError, match="not the manifest of written text"):
        world.write(tmp_path / "foreign")
    assert (tmp_path / "foreign" / "notes.txt").is_file()
    world.write(tmp_path / "texts")
    (tmp_path / "texts" / "shard-00001.parquet").unlink()
    with pytest.raises(SettingError, match=r"shard-00001\.parquet is missing, 1 of 3"):
        read_answers(tmp_path / "texts")
    (tmp_path / "texts" / "shard-00001.parquet").write_bytes(b"not parquet")
    with pytest.raises(SettingError, match="not a Parquet file"):
        read_answers(tmp_path / "texts")


def test_examples_take_ids_and_unfinished_answers_get_no_eos(world, tmp_path) -> None:
    world.write(tmp_path / "texts", origin="student")
    answers = read_answers(tmp_path / "texts")
    examples = answer_examples(answers, world.encoder)
    assert len(examples) == 60
    for answer, example in zip(answers, examples, strict=True):
        assert example.tokens == answer.prompt_tokens + answer.completion_tokens
        assert example.targets == (False,) * len(answer.prompt_tokens) + (True,) * len(answer.completion_tokens)
        assert (example.tokens[-1] == EOS) == answer.finished
        assert (example.row, example.origin) == (answer.row, "student")


def test_the_folder_serves_as_training_rows(world, tmp_path) -> None:
    world.write(tmp_path / "texts")
    (tmp_path / "texts" / ".shard-00002.jsonl").write_text("[[1,0,[2]]]\n")
    answers, rows = read_answers(tmp_path / "texts"), load_rows(tmp_path / "texts")
    encoded = world.encoder.encode(rows)
    for answer, example in zip(answers, encoded.examples, strict=True):
        assert (example.tokens[-1] == EOS) == answer.finished
        if not any(token in (BOS, 2) for token in answer.completion_tokens):
            assert example.tokens == answer.prompt_tokens + answer.completion_tokens


def test_several_answers_to_a_prompt_differ_and_the_first_stays_what_it_was(world, tmp_path) -> None:
    rows, three = world.rows[:20], CONFIG.model_copy(update={"samples_per_prompt": 3})
    assert world.write(tmp_path / "one", rows=rows) == 20
    assert world.write(tmp_path / "three", rows=rows, config=three) == 60
    answers = read_answers(tmp_path / "three")
    assert [(answer.row, answer.sample) for answer in answers[:4]] == [(10, 0), (10, 1), (10, 2), (11, 0)]
    pairs = zip(answers[::3], answers[1::3], strict=True)
    assert sum(first.completion_tokens != second.completion_tokens for first, second in pairs) > 10
    alone = [answer.completion_tokens for answer in read_answers(tmp_path / "one")]
    assert [answer.completion_tokens for answer in answers[::3]] == alone
    assert len(answer_examples(answers, world.encoder)) == 60


def test_an_answer_hangs_on_its_row_and_not_on_its_neighbours(world, tmp_path) -> None:
    world.write(tmp_path / "all", config=CONFIG.model_copy(update={"batch_size": 60}), shard_size=60)
    world.write(tmp_path / "few", rows=world.rows[30:40])

    def said(folder: Path) -> dict[int, tuple[int, ...]]:
        return {answer.row: answer.completion_tokens for answer in read_answers(folder)}

    few, whole = said(tmp_path / "few"), said(tmp_path / "all")
    assert few == {row: whole[row] for row in few}
    same = [replace(world.rows[1], index=row) for row in range(20)]
    world.write(tmp_path / "same", rows=same)
    assert len(set(said(tmp_path / "same").values())) > 5, "equal prompts in different rows have their own chance"


def test_several_greedy_answers_are_one(world, tmp_path) -> None:
    greedy = CONFIG.model_copy(update={"samples_per_prompt": 2, "temperature": 0.0})
    with pytest.warns(SettingWarning, match="samples_per_prompt = 2 has no effect at temperature 0"):
        assert world.write(tmp_path / "texts", config=greedy) == 60


def test_any_token_that_ends_an_answer_is_no_part_of_its_text(world, tmp_path) -> None:
    runs = world.tokenizer.convert_tokens_to_ids("runs")
    world.write(tmp_path / "texts", eos_ids=[EOS, runs])
    ended = [answer for answer in read_answers(tmp_path / "texts") if answer.completion_tokens[-1] == runs]
    assert ended
    assert all(answer.finished and "runs" not in answer.completion for answer in ended)


def test_prompts_that_cannot_be_answered_name_their_line(world, tmp_path) -> None:
    long = Row(index=0, where="p.jsonl, line 9", prompt=" ".join(["red"] * 30))
    with pytest.raises(SettingError, match=r"p\.jsonl, line 9: the prompt has 32 tokens, over the limit of 19"):
        world.write(tmp_path / "texts", rows=[world.rows[0], long])
    wide = Encoder(world.tokenizer, DataConfig(train="x", prompt_template="<s> {prompt} <sep>", max_length=100))
    with pytest.raises(SettingError, match=r"p\.jsonl, line 9: .* no room .* teacher's context of 24"):
        world.write(tmp_path / "texts", rows=[world.rows[0], long], encoder=wide)
    with pytest.raises(SettingError, match="no prompt to answer"):
        world.write(tmp_path / "texts", rows=[])
    assert not list(tmp_path.iterdir())


def test_a_conversation_is_answered_through_its_template(world, tmp_path) -> None:
    template = "<s> {% for m in messages %}{{ m.content }} <sep> {% endfor %}"
    talk = [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "sits"}]
    rows = [Row(index=0, where="t, line 1", messages=talk), Row(index=1, where="t, line 2", messages=talk[:1])]
    world.tokenizer.chat_template = template
    try:
        world.write(tmp_path / "texts", rows=rows)
        answers: list[Answer] = read_answers(tmp_path / "texts")
        world.tokenizer.chat_template = template + " "
        with pytest.raises(SettingError, match="chat_template"):
            world.write(tmp_path / "texts", rows=rows)
    finally:
        world.tokenizer.chat_template = None
    assert answers[0].prompt == "<s> red cat <sep>"
    assert answers[0].prompt_tokens == answers[1].prompt_tokens == (BOS, 3, 6, 2)


def test_real_pronunciation_teacher(shared, tmp_path) -> None:
    from amidkd.models import eos_ids_of, load_model, load_tokenizer

    source = shared / "models" / "g2p-teacher128"
    model, tokenizer = load_model(source), load_tokenizer(source)
    encoder = Encoder(tokenizer, DataConfig(train="x", prompt_template="<s>{prompt}<sep>", max_length=64))
    rows = load_rows(shared / "data" / "g2p_cmudict_valid.jsonl", max_rows=60)
    config = GenerationConfig(max_new_tokens=32, temperature=0, batch_size=60)
    real = World(model, tokenizer, encoder, [row.unlabelled() for row in rows])
    eos_ids = eos_ids_of(tokenizer, model)
    real.write(tmp_path / "texts", config=config, eos_ids=eos_ids, vocab_size=100, context=None, shard_size=60)
    answers = zip(rows, read_answers(tmp_path / "texts"), strict=True)
    right = [answer.completion in (row.completion, *row.references) for row, answer in answers]
    assert sum(right) >= 20, "the teacher says over half of the words right, when asked as it was trained"
