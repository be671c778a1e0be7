"""Which tokens of two tokenizers are the same: they stand for the same bytes, or have the same role."""

from collections import defaultdict

from amidkd.teachers.alignment.pieces import Pieces

__all__ = ["partner_of", "shared_tokens"]


def partner_of(teacher: Pieces, student: Pieces, number: int, *, opens: bool = False) -> int | None:
    """The teacher's special token in the role of one of the student's, or None.

    Args:
        teacher: The teacher's tokens.
        student: The student's tokens.
        number: A special token of the student.
        opens: Whether it is the first of its row: a token that both opens and closes a text then opens it.
    """
    if number == student.bos and (opens or number != student.eos):
        return teacher.bos
    if number == student.eos:
        return teacher.eos
    string = student.special[number]
    named = {text: special for special, text in teacher.special.items()}
    found = named.get(string)
    return None if found in (teacher.bos, teacher.eos) else found


def shared_tokens(teacher: Pieces, student: Pieces) -> tuple[list[int], list[int]]:
    """The tokens that both have, each of them once.

    Where several tokens stand for the same bytes, those of the same string are paired first, and a byte of the byte
    fallback (part of a letter, or a letter that the text has otherwise) last.

    Args:
        teacher: The teacher's tokens.
        student: The student's tokens.

    Returns:
        Ids of the student, ascending, and ids of the teacher, one for each.
    """
    pairs = _specials(teacher, student)
    taken = set(pairs.values())
    same_bytes: dict[bytes, list[int]] = defaultdict(list)
    for number, piece in enumerate(teacher.tokens):
        if piece:
            same_bytes[piece].append(number)
    wanted = [number for number, piece in enumerate(student.tokens) if piece and piece in same_bytes]
    for alike in (True, False):
        for number in sorted(wanted, key=student.is_byte):
            piece = student.tokens[number]
            if number in pairs or piece is None:
                continue
            found = [other for other in same_bytes[piece] if other not in taken]
            if alike:
                found = [other for other in found if teacher.strings[other] == student.strings[number]]
            if found:
                pairs[number] = min(found, key=teacher.is_byte)
                taken.add(pairs[number])
    ours = sorted(pairs)
    return ours, [pairs[number] for number in ours]


def _specials(teacher: Pieces, student: Pieces) -> dict[int, int]:
    pairs: dict[int, int] = {}
    # eos first: where one side has one token for bos and eos, it is eos that is predicted
    for number in sorted(student.special, key=lambda number: number != student.eos):
        found = partner_of(teacher, student, number)
        if found is not None and found not in pairs.values():
            pairs[number] = found
    return pairs
