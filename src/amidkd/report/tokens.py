"""Where the student loses to its teacher, token by token: ``tokens.jsonl`` as the page shows it."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

__all__ = ["CostlyToken", "TokenPlace", "TokenRow", "costly_tokens", "token_rows"]

_PLACES_SHOWN = 5


@dataclass(frozen=True)
class TokenPlace:
    """One position of a row where the student is far from its teacher.

    Args:
        number: Its place in the answer, from 1.
        text: The token that is there, blanks made visible.
        kl: KL(teacher‖student) at the position, nats.
        teacher: The teacher's probability of that token.
        student: The student's.
        teacher_first: What the teacher finds likeliest there, with its probability.
        student_first: The same of the student.
    """

    number: int
    text: str
    kl: str
    teacher: str
    student: str
    teacher_first: str
    student_first: str


@dataclass(frozen=True)
class TokenRow:
    """A row of ``tokens.jsonl``.

    Args:
        name: Its id on the page.
        row: Where the row is in its file.
        prompt: The prompt; empty for plain text.
        text: The answer.
        kl: Its mean KL(teacher‖student), nats a token.
        length: How many tokens it has.
        places: The positions with the highest divergence, the worst first.
        data: All its tokens, as JSON that is safe inside a ``<script>``.
    """

    name: str
    row: str
    prompt: str
    text: str
    kl: str
    length: int
    places: tuple[TokenPlace, ...]
    data: Markup


@dataclass(frozen=True)
class CostlyToken:
    """A token over all its positions in the rows that are shown.

    Args:
        text: The token, blanks made visible.
        times: How often it is there.
        mean: Mean KL(teacher‖student) where it is, nats.
        share: Its part of the rows' whole divergence, in [0, 1].
    """

    text: str
    times: int
    mean: float
    share: float


def token_rows(lines: Sequence[Mapping[str, Any]]) -> list[TokenRow]:
    """The rows of ``tokens.jsonl``, in its order: the farthest from the teacher first.

    Args:
        lines: Its lines.
    """
    return [_row(f"tokens-{place}", line) for place, line in enumerate(lines)]


def costly_tokens(lines: Sequence[Mapping[str, Any]], most: int = 15) -> list[CostlyToken]:
    """The tokens that the rows lose most divergence on, summed over their positions.

    Args:
        lines: Lines of ``tokens.jsonl``.
        most: How many are given.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        for token in line["tokens"]:
            if token["kl"] is not None:
                found[token["text"]].append(token["kl"])
    total = math.fsum(value for values in found.values() for value in values)
    ranked = sorted(found.items(), key=lambda entry: -math.fsum(entry[1]))[:most]
    return [
        CostlyToken(_visible(text), len(values), math.fsum(values) / len(values), math.fsum(values) / total)
        for text, values in ranked
        if total > 0
    ]


def _row(name: str, line: Mapping[str, Any]) -> TokenRow:
    tokens = line["tokens"]
    worst = sorted(range(len(tokens)), key=lambda place: -_finite(tokens[place]["kl"]))[:_PLACES_SHOWN]
    texts = [token["text"] for token in tokens]
    # Tokens that carry their own blanks are joined as they are; others (symbols, phonemes) would run into each other.
    between = "" if any(character.isspace() for text in texts for character in text) else " "
    return TokenRow(
        name=name,
        row=str(line["row"]),
        prompt=line.get("prompt") or "",
        text=between.join(texts),
        kl=_nats(line["kl"]),
        length=len(tokens),
        places=tuple(_place(place + 1, tokens[place]) for place in worst),
        data=_data(line),
    )


def _place(number: int, token: Mapping[str, Any]) -> TokenPlace:
    return TokenPlace(
        number,
        _visible(token["text"]),
        _nats(token["kl"]),
        _chance(token["p"]),
        _chance(token["q"]),
        _first(token["teacher"]),
        _first(token["student"]),
    )


def _finite(value: float | None) -> float:
    """What is unknown stands before what is known: it was not finite."""
    return math.inf if value is None else value


def _first(top: Sequence[Sequence[Any]]) -> str:
    return f"{_visible(top[0][0])} {_chance(top[0][1])}" if top else "–"


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _chance(value: float | None) -> str:
    if value is None:
        return "unknown"
    return f"{100 * value:.1f} %" if value >= 1e-3 or value == 0 else f"{100 * value:.1g} %".replace("e-0", "e-")


def _visible(text: str) -> str:
    """A token with its blanks shown; an empty one as what it is."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣") if text else "(empty)"


def _data(line: Mapping[str, Any]) -> Markup:
    """All tokens of a row in short: text, KL, p, q, and of each model one list of likeliest texts and probabilities."""

    def top(entries: Sequence[Sequence[Any]] | None) -> list[Any]:
        return [part for text, chance in entries or () for part in (text, _short(chance))]

    tokens = [
        [
            token["text"],
            *(_short(token[key]) for key in ("kl", "p", "q")),
            *(top(token.get(key)) for key in ("teacher", "assistant", "student")),
        ]
        for token in line["tokens"]
    ]
    content = {"alpha": line.get("alpha"), "lam": line.get("lam"), "tokens": tokens}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing inside may end the element or open a comment.
    return Markup(text.replace("<", "\\u003c"))


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
