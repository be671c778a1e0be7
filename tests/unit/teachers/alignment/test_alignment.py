"""Text as bytes: what tokens stand for, spans that two tokenizers cut alike, and the tokens that both have."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.errors import SettingError, SettingWarning
from amidkd.teachers import Teacher
from amidkd.teachers.alignment import Pieces, TextTeacher, align, make_text_teacher, shared_tokens

NAMES = ("gpt2-base", "mistral-7b-v0.1", "tinyllama-1.1b-3T")
TEXTS = (
    "The quick brown fox jumps.",
    " leading and  double   spaces \n\n\tand tabs ",
    "naïve café e\u0301 ﬁne Ａ Straße I'm you'll",
    "def f(x):\n    return {'a': [x**2 for x in range(10)]}  # 100%",
    "Привет, мир! 你好,世界。こんにちは مرحبا 안녕하세요",
    "👩\u200d👩\u200d👧 🙂 ∑αᵢ ≤ 1 <0x41>",
)


@pytest.fixture(scope="module")
def tokenizers(shared: Path) -> dict[str, Any]:
    return {name: AutoTokenizer.from_pretrained(shared / "tokenizers" / name) for name in NAMES}


@pytest.fixture(scope="module")
def pieces(tokenizers: dict[str, Any]) -> dict[str, Pieces]:
    return {name: Pieces(tokenizer, side="student") for name, tokenizer in tokenizers.items()}


def row_of(tokenizer: Any, text: str, prompt: str = "") -> tuple[list[int], list[bool]]:
    """A row with bos and eos, of which all after the prompt is supervised."""
    cut = tokenizer.encode(prompt, add_special_tokens=False) if prompt else []
    whole = tokenizer.encode(prompt + text, add_special_tokens=False)
    body = whole if whole[: len(cut)] == cut else cut + tokenizer.encode(text, add_special_tokens=False)
    tokens = [tokenizer.bos_token_id, *body, tokenizer.eos_token_id]
    return tokens, [place > len(cut) for place in range(len(tokens))]


def written(pieces: Pieces, tokens: Any) -> bytes:
    return b"".join(pieces.tokens[number] or b"" for number in tokens)


@pytest.mark.parametrize("student", NAMES)
@pytest.mark.parametrize("teacher", NAMES)
def test_spans_stand_for_the_same_bytes_and_cover_the_text(
    pieces: dict[str, Pieces], tokenizers: dict[str, Any], teacher: str, student: str
) -> None:
    ours, theirs = pieces[student], pieces[teacher]
    for given in TEXTS:
        tokens, targets = row_of(tokenizers[student], given)
        text = tokenizers[student].decode(tokens[1:-1]).encode()
        row = align(tokens, targets, teacher=theirs, student=ours)
        assert written(theirs, row.tokens) == b" " * theirs.adds_space(text) + text
        before = (1, 1)
        for span in row.spans:
            assert span.student[0] >= before[0]
            assert span.teacher[0] >= before[1]
            assert written(ours, tokens[slice(*span.student)]) == written(theirs, row.tokens[slice(*span.teacher)])
            before = span.student[1], span.teacher[1]
        covered = sum(stop - start for start, stop in (span.student for span in row.spans))
        first = row.spans[0].student[0] - 1
        assert covered == len(tokens) - 1 - first
        # the first span has other tokens where one side alone puts a space before the text
        assert (first > 0) == (theirs.adds_space(text) != (student != "gpt2-base"))
        assert first <= 4
        last = row.spans[-1]
        assert (tokens[last.student[0]], row.tokens[last.teacher[0]]) == (ours.eos, theirs.eos)


def test_the_same_tokenizer_cuts_every_token_alike(pieces: dict[str, Pieces], tokenizers: dict[str, Any]) -> None:
    for name in NAMES:
        ids = list(range(len(pieces[name])))
        assert shared_tokens(pieces[name], pieces[name]) == (ids, ids)
        for text in TEXTS:
            tokens, targets = row_of(tokenizers[name], text)
            row = align(tokens, targets, teacher=pieces[name], student=pieces[name])
            assert row.tokens == tuple(tokens)
            assert [span.student for span in row.spans] == [(n, n + 1) for n in range(1, len(tokens))]


def test_shared_tokens_stand_for_the_same_bytes(pieces: dict[str, Pieces]) -> None:
    ours, theirs = pieces["gpt2-base"], pieces["tinyllama-1.1b-3T"]
    student, teacher = shared_tokens(theirs, ours)
    assert len(set(student)) == len(set(teacher)) == len(student) > 18_000
    pairs = dict(zip(student, teacher, strict=True))
    assert all(ours.tokens[a] == theirs.tokens[b] for a, b in pairs.items() if a != ours.eos)
    assert pairs[ours.eos] == theirs.eos
    # a letter is the letter, not the byte of the fallback; a byte of a longer letter is that byte
    assert theirs.strings[pairs[ours.byte_ids[ord("A")]]] == "A"
    assert theirs.strings[pairs[ours.byte_ids[0xE2]]] == "<0xE2>"


def test_a_prompt_has_no_token_in_common_with_what_follows(
    pieces: dict[str, Pieces], tokenizers: dict[str, Any]
) -> None:
    tokens, targets = row_of(tokenizers["gpt2-base"], "known words", prompt="un")
    for teacher in ("mistral-7b-v0.1", "gpt2-base"):
        row = align(tokens, targets, teacher=pieces[teacher], student=pieces["gpt2-base"])
        spans = [written(pieces[teacher], row.tokens[slice(*span.teacher)]) for span in row.spans]
        assert b"".join(spans) == b"known words"
        assert all(targets[span.student[0]] for span in row.spans)


def test_what_the_teacher_would_misread_is_read_byte_by_byte(
    pieces: dict[str, Pieces], tokenizers: dict[str, Any]
) -> None:
    """Half a letter; what is spelt like a special token; the letter that stands for a space."""
    ours, theirs = pieces["gpt2-base"], pieces["tinyllama-1.1b-3T"]
    for tokens in (
        [*tokenizers["gpt2-base"].encode("so "), ours.byte_ids[0xF0], ours.byte_ids[0x9F]],
        tokenizers["gpt2-base"].encode("of </s> and <unk>▁here"),
    ):
        row = align(tokens, [False] + [True] * (len(tokens) - 1), teacher=theirs, student=ours)
        assert written(theirs, row.tokens) == b" " + written(ours, tokens)
        assert [number for number in row.tokens if number in theirs.special] == [theirs.bos]


def test_markers_of_a_chat_are_read_and_teach_nothing(pieces: dict[str, Pieces], tokenizers: dict[str, Any]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tokenizers["gpt2-base"].name_or_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    ours, theirs = Pieces(tokenizer, side="student"), pieces["tinyllama-1.1b-3T"]
    tokens = tokenizer.encode("Hi<|user|>you")
    row = align(tokens, [False] + [True] * (len(tokens) - 1), teacher=theirs, student=ours)
    assert written(theirs, row.tokens) == b" Hi<|user|>you"
    assert [tokenizer.decode(tokens[slice(*span.student)]) for span in row.spans] == ["you"]


def test_a_tokenizer_without_bytes_is_an_error(shared: Path, pieces: dict[str, Pieces]) -> None:
    words = AutoTokenizer.from_pretrained(shared / "models" / "g2p-teacher")
    with pytest.raises(SettingError, match="the teacher's tokenizer to bytes: its model is WordLevel"):
        Pieces(words, side="teacher")


def test_making_the_teacher_of_a_shared_tokenizer_warns(shared: Path) -> None:
    source = str(shared / "models" / "stories260K-hf")
    tokenizer = AutoTokenizer.from_pretrained(source)
    with pytest.warns(SettingWarning, match="`token` gives the same loss"):
        teacher = make_text_teacher(LiveTeacherConfig(model=source, alignment="text"), student_tokenizer=tokenizer)
    assert isinstance(teacher, TextTeacher)
    assert isinstance(teacher, Teacher)
    assert teacher.vocab_size == teacher.shared_count == 512
    other = TextTeacher(teacher.live, student_tokenizer=tokenizer, uld_weight=0.5)
    assert other.fingerprint() != teacher.fingerprint()
