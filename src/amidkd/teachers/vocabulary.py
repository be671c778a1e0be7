"""Proof that two tokenizers speak of the same tokens: same string, same id, same encoding."""

import hashlib
import json
from typing import Any

from amidkd.errors import SettingError

__all__ = ["prove_same_vocabulary", "vocabulary_fingerprint"]

_SHOWN = 5
_DRAWN = 64

# Letters with and without accents, digits, white space, code, scripts without spaces, an emoji of several code points.
_SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    "  two spaces,\ttab,\n\nand lines\n",
    "naïve café ﬁne Ａ e\u0301 Straße I'm you'll THEY'RE",
    "1234567890 3.14159 1,000,000 2026-11-24",
    "def f(x):\n    return {'a': [x**2 for x in range(10)]}  # 100%",
    "Привет, мир! 你好,世界。こんにちは مرحبا 안녕하세요",
    "👩‍👩‍👧 🙂 ∑αᵢ ≤ 1",
)


def prove_same_vocabulary(*, teacher: Any, student: Any) -> int:
    """Prove that teacher and student mean the same tokens by the same ids.

    Three proofs: every id below the smaller vocabulary's size has one and the same string on both sides; no
    string has two ids; and sample texts, some of them drawn from the vocabulary itself, are cut into the same tokens
    (two tokenizers may list the same tokens and join them in another order). One side may know more tokens
    beyond the other's last: those are masked, as are the padded rows of either head.

    Args:
        teacher: The teacher's tokenizer.
        student: The student's tokenizer.

    Returns:
        The size of the shared vocabulary: one more than the largest id that both have.

    Raises:
        SettingError: The tokenizers differ; the message shows up to five differences.
    """
    teacher_vocab, student_vocab = teacher.get_vocab(), student.get_vocab()
    shared = min(max(teacher_vocab.values()), max(student_vocab.values())) + 1
    if teacher_vocab != student_vocab:
        _same_strings(teacher_vocab, student_vocab, shared)
    _same_encodings(teacher, student, shared)
    return shared


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's strings and ids, and of which are special; how it cuts text shows in what it made.

    Args:
        tokenizer: A transformers tokenizer.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    text = json.dumps([vocabulary, sorted(map(int, tokenizer.all_special_ids))])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _same_strings(teacher: dict[str, int], student: dict[str, int], shared: int) -> None:
    strings = {text for vocab in (teacher, student) for text, token in vocab.items() if token < shared}
    differing = [text for text in strings if teacher.get(text) != student.get(text)]
    if not differing:
        return
    differing.sort(key=lambda text: (min(teacher.get(text, shared), student.get(text, shared)), text))
    lines = [
        f"  {text!r}: teacher {teacher.get(text, 'has none')}, student {student.get(text, 'has none')}"
        for text in differing[:_SHOWN]
    ]
    raise SettingError(
        f"teacher and student have different tokenizers ({len(teacher)} and {len(student)} tokens): "
        f"{len(differing)} strings have different ids, such as\n" + "\n".join(lines) + "\n"
        "Distillation compares probabilities token by token; choose a teacher and a student of one model family."
    )


def _same_encodings(teacher: Any, student: Any, shared: int) -> None:
    for text in (*_SAMPLES, *_drawn_texts(teacher, shared), *_drawn_texts(student, shared)):
        ours = student.encode(text, add_special_tokens=False)
        theirs = teacher.encode(text, add_special_tokens=False)
        if ours != theirs:
            raise SettingError(
                "teacher and student have the same tokens but cut text into them differently (other merges, "
                f"normalisation or spacing): {text!r} is {theirs[:12]} for the teacher "
                f"and {ours[:12]} for the student.\n"
                "Use the tokenizer files of one of them for both, or choose a pair of one model family."
            )


def _drawn_texts(tokenizer: Any, shared: int) -> list[str]:
    """Texts made of tokens spread over the vocabulary: the tokenizer's own domain, whatever it is."""
    special = set(tokenizer.all_special_ids)
    step = max(1, shared // (_DRAWN * 8))
    ids = [token for token in range(0, shared, step) if token not in special]
    return [tokenizer.decode(ids[place::_DRAWN]) for place in range(min(_DRAWN, len(ids)))]
