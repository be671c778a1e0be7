"""The proof of a shared vocabulary: what must be accepted, and what must not."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from amidkd.errors import SettingError
from amidkd.models import load_tokenizer
from amidkd.teachers import prove_same_vocabulary


@pytest.fixture(scope="module")
def gpt2(shared: Path) -> Any:
    return load_tokenizer(shared / "tokenizers" / "gpt2-base")


@pytest.fixture(scope="module")
def stories(shared: Path) -> Any:
    return load_tokenizer(shared / "models" / "stories260K-hf")


def changed(tokenizer: Any, change: Any) -> Any:
    """The tokenizer with another backend; ``change`` edits its JSON."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    change(tree)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(tree)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
    )


def test_a_tokenizer_with_itself(shared: Path, gpt2: Any, stories: Any) -> None:
    assert prove_same_vocabulary(teacher=gpt2, student=copy.deepcopy(gpt2)) == 50257
    assert prove_same_vocabulary(teacher=stories, student=stories) == 512
    folders = [shared / "models" / name for name in ("g2p-teacher", "g2p-st64_ce")]
    assert prove_same_vocabulary(teacher=load_tokenizer(folders[0]), student=load_tokenizer(folders[1])) == 100


def test_one_tokenizer_of_two_models(shared: Path, stories: Any) -> None:
    other = load_tokenizer(shared / "models" / "llama2xs-279K-hf")
    assert prove_same_vocabulary(teacher=stories, student=other) == 512


def test_same_size_is_not_same_encoding(shared: Path) -> None:
    tinyllama, mistral = (load_tokenizer(shared / "tokenizers" / n) for n in ("tinyllama-1.1b-3T", "mistral-7b-v0.1"))
    assert len(tinyllama) == len(mistral) == 32000
    with pytest.raises(SettingError, match="different tokenizers") as caught:
        prove_same_vocabulary(teacher=tinyllama, student=mistral)
    shown = [line for line in str(caught.value).splitlines() if ": teacher" in line]
    assert len(shown) == 5
    ours, theirs = mistral.get_vocab(), tinyllama.get_vocab()
    for line in shown:
        text, _, ids = line.strip().rpartition(": teacher ")
        found, wanted = ids.split(", student ")
        string = eval(text)
        assert (str(theirs.get(string, "has none")), str(ours.get(string, "has none"))) == (found, wanted)
        assert found != wanted


def test_different_sizes_and_contents(gpt2: Any, stories: Any) -> None:
    for teacher, student in ((gpt2, stories), (stories, gpt2)):
        with pytest.raises(SettingError, match="different tokenizers"):
            prove_same_vocabulary(teacher=teacher, student=student)


def test_tokens_beyond_the_others_last_are_left_out(gpt2: Any) -> None:
    grown = copy.deepcopy(gpt2)
    grown.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    grown.pad_token = "<|im_end|>"
    assert prove_same_vocabulary(teacher=grown, student=gpt2) == 50257
    assert prove_same_vocabulary(teacher=gpt2, student=grown) == 50257


def test_one_added_id_with_two_meanings(gpt2: Any) -> None:
    teacher, student = copy.deepcopy(gpt2), copy.deepcopy(gpt2)
    teacher.add_tokens(["<call>"])
    student.add_tokens(["<pad>"])
    with pytest.raises(SettingError, match=r"'<call>': teacher 50257, student has none"):
        prove_same_vocabulary(teacher=teacher, student=student)


def test_added_tokens_in_another_order(gpt2: Any) -> None:
    teacher, student = copy.deepcopy(gpt2), copy.deepcopy(gpt2)
    teacher.add_tokens(["<a>", "<b>"])
    student.add_tokens(["<b>", "<a>"])
    with pytest.raises(SettingError, match=r"2 strings have different ids"):
        prove_same_vocabulary(teacher=teacher, student=student)


def test_two_tokens_exchanged(stories: Any) -> None:
    def exchange(tree: dict[str, Any]) -> None:
        vocab = tree["model"]["vocab"]
        vocab["▁a"], vocab["▁the"] = vocab["▁the"], vocab["▁a"]

    with pytest.raises(SettingError, match="2 strings have different ids"):
        prove_same_vocabulary(teacher=stories, student=changed(stories, exchange))


def test_same_tokens_joined_in_another_order(gpt2: Any) -> None:
    def reverse(tree: dict[str, Any]) -> None:
        tree["model"]["merges"] = [*tree["model"]["merges"][:20_000], *tree["model"]["merges"][:19_999:-1]]

    other = changed(gpt2, reverse)
    assert other.get_vocab() == gpt2.get_vocab()
    with pytest.raises(SettingError, match="cut text into them differently"):
        prove_same_vocabulary(teacher=gpt2, student=other)


def test_same_tokens_other_spacing_or_normalisation(gpt2: Any) -> None:
    def lower(tree: dict[str, Any]) -> None:
        tree["normalizer"] = {"type": "Lowercase"}

    def prefix(tree: dict[str, Any]) -> None:
        tree["pre_tokenizer"]["add_prefix_space"] = True

    for change in (lower, prefix):
        with pytest.raises(SettingError, match="cut text into them differently"):
            prove_same_vocabulary(teacher=gpt2, student=changed(gpt2, change))


def test_rebuilding_alone_changes_nothing(gpt2: Any, stories: Any) -> None:
    """The helper of the tests above is not what they detect."""
    for tokenizer in (gpt2, stories):
        assert prove_same_vocabulary(teacher=tokenizer, student=changed(tokenizer, lambda tree: None)) > 500
