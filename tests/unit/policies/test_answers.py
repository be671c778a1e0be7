"""Answers are written once, survive a kill, and are learnt as they were said."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.config import DataConfig, GenerationConfig
from amidkd.data import Encoder, Row, load_rows
from amidkd.errors import SettingError, SettingWarning
from amidkd.policies import answer_examples, answers_fingerprint, read_answers, write_answers

EOS, BOS = 0, 1
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sits", "runs"]
CONFIG = GenerationConfig(max_new_tokens=6, batch_size=3, seed=5)


@dataclass(frozen=True)
class World:
    model: Any
    tokenizer: Any
    encoder: Encoder
    rows: list[Row]

    def write(self, path: Path, config: GenerationConfig = CONFIG, **changes: Any) -> int:
        given = {
            "model": self.model,
            "tokenizer": self.tokenizer,
            "encoder": self.encoder,
            "config": config,
            "eos_ids": [EOS],
            "pad_id": EOS,
            "vocab_size": len(self.tokenizer),
            "fingerprint": "teacher-1",
            "path": path,
            **changes,
        }
        return write_answers(given.pop("prompts", self.rows), **given)


@pytest.fixture(scope="module")
def world() -> World:
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


class KilledError(Exception):
    """Raised in the middle of the work."""


def test_answers_say_what_the_model_said(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    assert world.write(path) == 60
    answers = read_answers(path)
    assert [answer.row for answer in answers] == [row.index for row in world.rows]
    assert [answer.where for answer in answers] == [row.where for row in world.rows]
    assert {answer.origin for answer in answers} == {"teacher"}
    for row, answer in zip(world.rows, answers, strict=True):
        assert list(answer.prompt_tokens) == world.encoder.prompt_tokens(row)
        assert answer.prompt == row.prompt
        assert answer.finished == (answer.completion_tokens[-1] == EOS)
        assert EOS not in answer.completion_tokens[:-1]
        assert answer.finished or len(answer.completion_tokens) == 6
        said = [t for t in answer.completion_tokens if t > 2]
        assert answer.completion == world.tokenizer.decode(said)
    assert 0 < sum(answer.finished for answer in answers) < 60


def test_greedy_answers_are_the_models_own(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path, GenerationConfig(max_new_tokens=3, temperature=0, batch_size=7))
    for answer in read_answers(path)[:6]:
        tokens = list(answer.prompt_tokens)
        for said in answer.completion_tokens:
            with torch.no_grad():
                logits = world.model(input_ids=torch.tensor([tokens])).logits[0, -1, : len(world.tokenizer)]
            assert said == int(logits.argmax())
            tokens.append(said)


@pytest.mark.parametrize("after", [1, 10, 59])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(world, tmp_path, after) -> None:
    whole, killed = tmp_path / "whole.parquet", tmp_path / "killed" / "whole.parquet"
    world.write(whole)
    done = []

    def die(answers: int, tokens: int) -> None:
        done.append(answers)
        if sum(done) > after:
            raise KilledError

    with pytest.raises(KilledError):
        world.write(killed, progress=die)
    assert not killed.exists()
    made_again = []
    assert world.write(killed, progress=lambda answers, tokens: made_again.append((answers, tokens))) == 60
    assert killed.read_bytes() == whole.read_bytes()
    assert sum(answers for answers, _ in made_again) == 60
    found = sum(answers for answers, tokens in made_again if tokens == 0)
    assert found == (after // 24) * 24, "finished parts (8 batches of 3) are not made again"
    assert [path.name for path in killed.parent.iterdir()] == ["whole.parquet"]


def test_a_kill_while_writing_leaves_nothing_that_looks_finished(world, tmp_path, monkeypatch) -> None:
    import os

    path = tmp_path / "generated.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            world.write(path)
    assert not path.exists()
    assert not list(tmp_path.rglob("*.parquet"))
    assert world.write(path) == 60


def test_a_finished_file_is_not_made_again(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path)
    before = path.stat().st_mtime_ns
    assert world.write(path, model=None) == 60, "the model is not even asked"
    assert path.stat().st_mtime_ns == before
    assert world.write(path, CONFIG.model_copy(update={"batch_size": 50}), model=None) == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "teacher-2"}, r"teacher is teacher-1 in the file and teacher-2 now"),
        ({"config": CONFIG.model_copy(update={"temperature": 0.5})}, r"temperature is 1\.0 in the file and 0\.5 now"),
        ({"config": CONFIG.model_copy(update={"seed": 6})}, "seed is 5 in the file and 6 now"),
        ({"vocab_size": 9}, "vocab_size is 11 in the file and 9 now"),
    ],
)
def test_answers_made_with_other_settings_are_refused(world, tmp_path, changes, message) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path)
    with pytest.raises(SettingError, match=message + ".*remove the file"):
        world.write(path, **changes)


def test_answers_to_other_prompts_are_refused(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path)
    with pytest.raises(SettingError, match=r"\(prompts is .* in the file and .* now\)"):
        world.write(path, prompts=world.rows[:-1])


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_size": 5}])
def test_parts_of_other_settings_are_not_taken_up(world, tmp_path, change) -> None:
    first, second = tmp_path / "generated.parquet", tmp_path / "alone" / "generated.parquet"

    def die(answers: int, tokens: int) -> None:
        if any(tmp_path.glob(".*parts*/part-*")):
            raise KilledError

    with pytest.raises(KilledError):
        world.write(first, progress=die)
    other = CONFIG.model_copy(update=change)
    assert world.write(first, other) == 60
    world.write(second, other)
    assert first.read_bytes() == second.read_bytes()
    assert [path.name for path in second.parent.iterdir()] == ["generated.parquet"]


def test_any_token_that_ends_an_answer_is_no_part_of_its_text(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    runs = world.tokenizer.convert_tokens_to_ids("runs")
    world.write(path, eos_ids=[EOS, runs])
    ended = [answer for answer in read_answers(path) if answer.completion_tokens[-1] == runs]
    assert ended
    assert all(answer.finished and "runs" not in answer.completion for answer in ended)


def test_expected_fingerprint(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path)
    settings = {"encoder": world.encoder, "config": CONFIG, "eos_ids": [EOS], "vocab_size": 11}
    expected = answers_fingerprint(world.rows, teacher="teacher-1", **settings)
    assert len(read_answers(path, expected_fingerprint=expected)) == 60
    with pytest.raises(SettingError, match="teacher is teacher-1 in the file and other now"):
        read_answers(path, expected_fingerprint=answers_fingerprint(world.rows, teacher="other", **settings))
    json.dumps(expected)


def test_a_file_that_is_none_of_ours_is_refused(world, tmp_path) -> None:
    import pyarrow
    import pyarrow.parquet

    with pytest.raises(SettingError, match="no such file of answers"):
        read_answers(tmp_path / "absent.parquet")
    foreign = tmp_path / "foreign.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), foreign)
    with pytest.raises(SettingError, match="does not say what they were made with"):
        read_answers(foreign)
    with pytest.raises(SettingError, match="does not say what they were made with"):
        world.write(foreign)


def test_examples_take_ids_and_unfinished_answers_get_no_eos(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path)
    answers = read_answers(path)
    examples = answer_examples(answers, world.encoder)
    assert len(examples) == 60
    for answer, example in zip(answers, examples, strict=True):
        assert example.tokens == answer.prompt_tokens + answer.completion_tokens
        assert example.targets == (False,) * len(answer.prompt_tokens) + (True,) * len(answer.completion_tokens)
        assert (example.tokens[-1] == EOS) == answer.finished
        assert (example.row, example.origin) == (answer.row, "teacher")


def test_the_file_serves_as_training_rows(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    world.write(path)
    answers, rows = read_answers(path), load_rows(path)
    encoded = world.encoder.encode(rows)
    for answer, example in zip(answers, encoded.examples, strict=True):
        assert (example.tokens[-1] == EOS) == answer.finished
        if not any(token in (BOS, 2) for token in answer.completion_tokens):
            assert example.tokens == answer.prompt_tokens + answer.completion_tokens


def test_several_answers_to_a_prompt_differ(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    assert world.write(path, CONFIG.model_copy(update={"samples_per_prompt": 2}), prompts=world.rows[:20]) == 40
    answers = read_answers(path)
    assert [(answer.row, answer.sample) for answer in answers[:4]] == [(10, 0), (10, 1), (11, 0), (11, 1)]
    pairs = zip(answers[::2], answers[1::2], strict=True)
    assert sum(first.completion_tokens != second.completion_tokens for first, second in pairs) > 10


def test_equal_prompts_in_different_parts_have_their_own_chance(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    same = [Row(index=i, where="p, line 1", prompt="red cat") for i in range(48)]  # two parts of 24
    world.write(path, prompts=same)
    answers = [answer.completion_tokens for answer in read_answers(path)]
    assert answers[:24] != answers[24:]


def test_several_greedy_answers_are_one(world, tmp_path) -> None:
    greedy = CONFIG.model_copy(update={"samples_per_prompt": 2, "temperature": 0.0})
    with pytest.warns(SettingWarning, match="samples_per_prompt = 2 has no effect at temperature 0"):
        assert world.write(tmp_path / "generated.parquet", greedy) == 60


def test_prompts_that_cannot_be_answered_name_their_line(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    long = Row(index=0, where="p.jsonl, line 9", prompt=" ".join(["red"] * 30))
    with pytest.raises(SettingError, match=r"p\.jsonl, line 9: the prompt has 32 tokens, over the limit of 19"):
        world.write(path, prompts=[world.rows[0], long])
    wide = Encoder(world.tokenizer, DataConfig(train="x", prompt_template="<s> {prompt} <sep>", max_length=100))
    with pytest.raises(SettingError, match=r"p\.jsonl, line 9: .* no room .* context of 24"):
        world.write(path, prompts=[world.rows[0], long], encoder=wide)
    with pytest.raises(SettingError, match="no prompt to answer"):
        world.write(path, prompts=[])
    assert not list(tmp_path.iterdir())


def test_a_conversation_is_answered_through_its_template(world, tmp_path) -> None:
    path = tmp_path / "generated.parquet"
    template = "<s> {% for m in messages %}{{ m.content }} <sep> {% endfor %}"
    world.tokenizer.chat_template = template
    try:
        talk = [{"role": "user", "content": "red cat"}, {"role": "assistant", "content": "sits"}]
        rows = [Row(index=0, where="t, line 1", messages=talk), Row(index=1, where="t, line 2", messages=talk[:1])]
        world.write(path, prompts=rows)
        answers = read_answers(path)
    finally:
        world.tokenizer.chat_template = None
    assert answers[0].prompt == "<s> red cat <sep>"
    assert answers[0].prompt_tokens == answers[1].prompt_tokens == (BOS, 3, 6, 2)


def test_real_pronunciation_teacher(shared, tmp_path) -> None:
    from amidkd.models import eos_ids_of, load_model, load_tokenizer, pad_id_of

    folder = shared / "models" / "g2p-teacher128"
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    encoder = Encoder(tokenizer, DataConfig(train="x", prompt_template="<s>{prompt}<sep>", max_length=64))
    rows = load_rows(shared / "data" / "g2p_cmudict_valid.jsonl", max_rows=60)
    path = tmp_path / "generated.parquet"
    write_answers(
        [row.unlabelled() for row in rows],
        model=model,
        tokenizer=tokenizer,
        encoder=encoder,
        config=GenerationConfig(max_new_tokens=32, temperature=0, batch_size=60),
        eos_ids=eos_ids_of(tokenizer, model),
        pad_id=pad_id_of(tokenizer),
        vocab_size=100,
        fingerprint="g2p",
        path=path,
    )
    right = [
        answer.completion in (row.completion, *row.references)
        for row, answer in zip(rows, read_answers(path), strict=True)
    ]
    assert sum(right) >= 20, "the teacher says over half of the words right, when asked as it was trained"
