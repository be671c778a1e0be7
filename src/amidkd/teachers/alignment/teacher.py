"""A teacher in memory whose tokenizer is not the student's."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.errors import SettingError, SettingWarning
from amidkd.models import load_tokenizer, vocabulary_size
from amidkd.teachers.aligned import Aligned
from amidkd.teachers.alignment.pieces import Pieces
from amidkd.teachers.alignment.shared import shared_tokens
from amidkd.teachers.alignment.spans import Row, Span, align
from amidkd.teachers.live import LiveTeacher, load_live
from amidkd.teachers.vocabulary import prove_same_vocabulary

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = ["TextTeacher", "make_text_teacher"]


@final
class TextTeacher:
    """Reads the text of the student's tokens with its own tokenizer.

    Args:
        live: The model, with the vocabulary of its own tokenizer.
        student_tokenizer: What the sequences are made with.
        uld_weight: Weight of the tokens that are not shared.

    Attributes:
        vocab_size: The student's own vocabulary, of which every token can be learnt.

    Raises:
        SettingError: A tokenizer that cannot be mapped to bytes.
    """

    def __init__(self, live: LiveTeacher, *, student_tokenizer: Any, uld_weight: float = 0.1) -> None:
        self.live = live
        self.vocab_size = vocabulary_size(student_tokenizer)
        self.teacher = Pieces(live.tokenizer, side="teacher")
        self.student = Pieces(student_tokenizer, side="student")
        self.uld_weight = uld_weight
        self._longest = _longest(live.model)
        ours, theirs = shared_tokens(self.teacher, self.student)
        self._shared = [torch.tensor(ids, dtype=torch.long) for ids in (ours, theirs)]
        self._partners = dict(zip(ours, theirs, strict=True))
        self._student_text = student_tokenizer.backend_tokenizer.to_str()

    @property
    def in_process(self) -> bool:
        """Always."""
        return True

    @property
    def shared_count(self) -> int:
        """How many tokens both tokenizers have."""
        return len(self._shared[0])

    def signal(self, sequences: "Sequences") -> Aligned:
        """The teacher's distributions at the spans of text that are wholly supervised.

        Args:
            sequences: A batch of the student's tokens; on any device, to which the signal comes back.

        Raises:
            SettingError: A byte that the teacher has no token for.
        """
        device = sequences.tokens_BT.device
        rows = self.read(sequences)
        theirs, tokens_R, span_R = _batch(rows)
        student_M, teacher_M = (ids.to(device) for ids in self._shared)
        return Aligned(
            teacher=self.live.signal(theirs.to(device)),
            tokens_R=tokens_R.to(device),
            span_R=span_R.to(device),
            span_N=_spans_of(sequences, rows).to(device),
            student_M=student_M,
            teacher_M=teacher_M,
            teacher_vocab_size=self.live.vocab_size,
            uld_weight=self.uld_weight,
        )

    def read(self, sequences: "Sequences") -> list[Row]:
        """Each row of a batch in the teacher's tokens, cut to the length that the model can read."""
        attention = sequences.attention_BT.bool().tolist()
        found = []
        for tokens, there, targets in zip(
            sequences.tokens_BT.tolist(), attention, sequences.targets_BT.tolist(), strict=True
        ):
            length = sum(there)
            row = align(tokens[:length], targets[:length], teacher=self.teacher, student=self.student)
            spans = [span for span in row.spans if self._comparable(span, tokens, row.tokens)]
            found.append(_cut(Row(row.tokens, tuple(spans)), self._longest))
        return found

    def _comparable(self, span: Span, ours: Sequence[int], theirs: Sequence[int]) -> bool:
        """Whether a token each is one token both have: several may stand for the same bytes, paired with others."""
        (a, b), (c, d) = span.student, span.teacher
        return b - a > 1 or d - c > 1 or self._partners.get(ours[a]) == theirs[c]

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Nothing to begin: the model is here."""

    def begin_step(self, step: int) -> None:
        """Nothing hangs on the step."""

    def close(self) -> None:
        """Nothing to let go of."""

    def fingerprint(self) -> str:
        """SHA-256 of the model's fingerprint, the student's tokenizer and the weight of unshared tokens."""
        said = f"{self.live.fingerprint()}|{self._student_text}|{self.uld_weight}"
        return hashlib.sha256(said.encode()).hexdigest()


def make_text_teacher(
    config: LiveTeacherConfig, *, student_tokenizer: Any, device: str | torch.device | None = None
) -> TextTeacher:
    """Load a teacher with a tokenizer of its own.

    Warns where the tokenizers are one after all.

    Args:
        config: The run file's ``teacher``.
        student_tokenizer: What the sequences are made with.
        device: The student's device, where the teacher goes unless its section names another.

    Raises:
        SettingError: The model or an extra is missing; a tokenizer cannot be mapped to bytes (before weights are read).
    """
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    for side, one in (("teacher", tokenizer), ("student", student_tokenizer)):
        Pieces(one, side=side)
    if _same(tokenizer, student_tokenizer):
        warnings.warn(
            "teacher.alignment is `text`, but teacher and student share a tokenizer: `token` gives the same loss and "
            "is cheaper",
            SettingWarning,
            stacklevel=2,
        )
    live = load_live(config, tokenizer, vocab_size=vocabulary_size(tokenizer), device=device)
    return TextTeacher(live, student_tokenizer=student_tokenizer, uld_weight=config.uld_weight)


def _same(teacher: Any, student: Any) -> bool:
    try:
        return prove_same_vocabulary(teacher=teacher, student=student) == vocabulary_size(student)
    except SettingError:
        return False


def _longest(model: Any) -> int | None:
    return getattr(getattr(model, "config", None), "max_position_embeddings", None)


def _cut(row: Row, longest: int | None) -> Row:
    """A row without what lies beyond the model's length."""
    if longest is None or len(row.tokens) <= longest:
        return row
    return Row(row.tokens[:longest], tuple(span for span in row.spans if span.teacher[1] <= longest))


def _batch(rows: Sequence[Row]) -> tuple["Sequences", Tensor, Tensor]:
    """The rows as a batch of the teacher's, whose targets are the tokens of spans; these tokens, and their spans."""
    from amidkd.data import Example, collate

    examples, tokens, spans = [], [], []
    count = 0
    for place, row in enumerate(rows):
        # a row without a text still takes part: a batch has one sequence for each
        ids = row.tokens or (0,)
        targets = [False] * len(ids)
        for span in row.spans:
            for token in range(*span.teacher):
                targets[token] = True
                tokens.append(ids[token])
                spans.append(count)
            count += 1
        examples.append(Example(ids, tuple(targets), row=place))
    return collate(examples, pad_id=0), torch.tensor(tokens, dtype=torch.long), torch.tensor(spans, dtype=torch.long)


def _spans_of(sequences: "Sequences", rows: Sequence[Row]) -> Tensor:
    """The span of each supervised token [N]."""
    span_BT = torch.full(sequences.targets_BT.shape, -1, dtype=torch.long)
    count = 0
    for place, row in enumerate(rows):
        for span in row.spans:
            span_BT[place, slice(*span.student)] = count
            count += 1
    return span_BT[:, 1:][sequences.targets_BT[:, 1:].cpu()]
