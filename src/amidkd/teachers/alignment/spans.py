"""A row of the student's tokens read by the teacher's tokenizer, and the spans of text that both cut alike."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field

from amidkd.teachers.alignment.pieces import Pieces
from amidkd.teachers.alignment.shared import partner_of

__all__ = ["Row", "Span", "align"]


@dataclass(frozen=True)
class Span:
    """Text between two places where both tokenizers have a boundary.

    Args:
        student: First and one past the last of the student's tokens.
        teacher: First and one past the last of the teacher's.
    """

    student: tuple[int, int]
    teacher: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """A row as the teacher reads it.

    Args:
        tokens: The teacher's tokens.
        spans: The spans that can be learnt from, in order: all of their tokens are supervised.
    """

    tokens: tuple[int, ...]
    spans: tuple[Span, ...]


def align(tokens: Sequence[int], targets: Sequence[bool], *, teacher: Pieces, student: Pieces) -> Row:
    """Read a row with the teacher's tokenizer.

    The bytes of the row are those of its tokens, one after another. They are cut into segments at special tokens, and
    where a supervised part begins or ends (what was a prompt when the text was written has no token in common with
    what follows), unless that is within a letter. The teacher cuts each segment by itself. A special token becomes
    the teacher's of the same role (bos, eos) or the same string; one that has no partner is read as text where it is
    a marker of a chat, and teaches nothing; bos and eos without a partner are left out.

    A space that a tokenizer puts before a text is no part of it. Where one side alone does so, the first span has
    other tokens for that reason, and teaches nothing.

    Args:
        tokens: The student's tokens.
        targets: Which are supervised.
        teacher: The teacher's tokens.
        student: The student's tokens.
    """
    reader = _Reader(teacher, student, targets)
    reader.open(tokens)
    start = 0
    for place in range(len(tokens) + 1):
        ends = place == len(tokens) or tokens[place] in student.special
        if ends or (place > start and targets[place] != targets[place - 1] and reader.whole(tokens[start:place])):
            reader.text(tokens, start, place)
            start = place
        if place < len(tokens) and ends:
            reader.marker(tokens[place], place)
            start = place + 1
    return Row(tuple(reader.tokens), tuple(reader.spans))


@dataclass
class _Reader:
    """The teacher's tokens so far."""

    teacher: Pieces
    student: Pieces
    targets: Sequence[bool]
    tokens: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    began: bool = False

    def open(self, tokens: Sequence[int]) -> None:
        """The teacher's bos where it wants one, and the row does not say itself whether there is one."""
        follows = self.student.opens or (len(tokens) > 0 and tokens[0] == self.student.bos)
        if self.teacher.opens and not follows and self.teacher.bos is not None:
            self.tokens.append(self.teacher.bos)

    def whole(self, tokens: Sequence[int]) -> bool:
        """Whether tokens end where a letter ends."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(b"".join(self.student.tokens[number] or b"" for number in tokens))
        return not decoder.getstate()[0]

    def marker(self, number: int, place: int) -> None:
        """A special token of the student."""
        partner = partner_of(self.teacher, self.student, number, opens=place == 0)
        here = len(self.tokens)
        if partner is not None:
            self.tokens.append(partner)
            self._add(Span((place, place + 1), (here, here + 1)))
        elif number not in (self.student.bos, self.student.eos):
            self.tokens += self.teacher.encode(self.student.special[number].encode())

    def text(self, tokens: Sequence[int], start: int, stop: int) -> None:
        """A segment."""
        if start == stop:
            return
        pieces = [self.student.tokens[number] or b"" for number in tokens[start:stop]]
        first, self.began = not self.began, True
        theirs: list[int] = []
        spaced = (False, False)
        if first:
            stripped = self.student.strip(pieces[0])
            ours = len(stripped) < len(pieces[0])
            text = b"".join([stripped, *pieces[1:]])
            spaced = (ours, self.teacher.adds_space(text))
            theirs = self.teacher.encode(b" " * spaced[1] + text)
        else:
            theirs = self.teacher.encode(b"".join(pieces))
        here = len(self.tokens)
        self.tokens += theirs
        ends = _ends(pieces, spaced[0])
        their_ends = _ends([self.teacher.tokens[number] or b"" for number in theirs], spaced[1])
        for span in _common(ends, their_ends):
            if spaced[0] == spaced[1] or (span.student[0] > 0 and span.teacher[0] > 0):
                (a, b), (c, d) = span.student, span.teacher
                self._add(Span((start + a, start + b), (here + c, here + d)))

    def _add(self, span: Span) -> None:
        if span.teacher[0] > 0 and span.student[0] > 0 and all(self.targets[slice(*span.student)]):
            self.spans.append(span)


def _ends(pieces: Sequence[bytes], spaced: bool) -> list[int]:
    """Where each token ends in the text [n]; a space that was put before it ends at 0."""
    found, end = [], -1 if spaced else 0
    for piece in pieces:
        end += len(piece)
        found.append(end)
    return found


def _common(ends: Sequence[int], theirs: Sequence[int]) -> list[Span]:
    """Spans between the boundaries that both have."""
    found: list[Span] = []
    places = {end: place + 1 for place, end in enumerate(theirs)}
    last = (0, 0)
    for place, end in enumerate(ends):
        # tokens without bytes share an end: the span closes after the last of them
        if end in places and (place + 1 == len(ends) or ends[place + 1] != end):
            now = (place + 1, places[end])
            found.append(Span((last[0], now[0]), (last[1], now[1])))
            last = now
    return found
