"""What `amidkd serve` and its client say to each other: safetensors both ways, sealed and with an echo.

A request holds rows (token ids, and the positions whose next token is asked for); an answer holds what the teacher
says there. Each answer begins with a checksum of all that follows, names the question and the model (by its
fingerprint), and repeats a digest of each row that it speaks of, so that the client knows that it holds a signal of the
tokens that it sent. What the server says of itself is JSON, for people to read too, with a checksum among its facts.
"""

# Tensors carry their shape in their name.
# ruff: noqa: N815

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = [
    "BINARY",
    "PROTOCOL",
    "DamagedError",
    "RequestError",
    "ScoredRow",
    "Wish",
    "bytes_per_token",
    "checksum_of",
    "digests_of",
    "open_sealed",
    "pack_request",
    "read_request",
    "sealed",
]

PROTOCOL = 2
"""Version of what is said; both sides must have the same."""

BINARY = "application/octet-stream"

Question = Literal["tokenizer", "head", "score"]
"""What a sealed answer says that it answers: the last part of the address that was asked."""

_CHECKSUM = 32
_DIGEST = 16
# A RecursionError is what deeply nested JSON raises.
_UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, RecursionError)
_REQUEST = ("counts", "lengths", "places", "tokens")


class RequestError(Exception):
    """A request that cannot be answered as it is; the message says why, the HTTP status what kind of fault it is."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class DamagedError(Exception):
    """An answer that is cut off, was changed on its way, or was meant for another question."""


@dataclass(frozen=True, eq=False)
class ScoredRow:
    """A sequence, and where in it the next token is asked for.

    Args:
        tokens_T: Token ids, int64 [T].
        places_n: Rising positions in 0 … T − 2, int64 [n], at least one.
    """

    tokens_T: Tensor
    places_n: Tensor


@dataclass(frozen=True)
class Wish:
    """What is asked about each place.

    Args:
        form: ``top_k`` or ``hidden``.
        top_k: How many tokens; 0 with ``hidden``.
        vocab_size: Ids from here on are masked; the size of the vocabulary that the client shares.
    """

    form: Literal["top_k", "hidden"]
    top_k: int
    vocab_size: int


def bytes_per_token(wish: Wish, *, hidden_bytes: int) -> int:
    """Size of the answer for one token.

    Args:
        wish: What is asked.
        hidden_bytes: Size of a hidden state.
    """
    return 8 * wish.top_k + 4 if wish.form == "top_k" else hidden_bytes


def digests_of(rows: Sequence[ScoredRow]) -> Tensor:
    """A digest of each row's tokens and places, uint8 [R, 16]."""
    found = bytearray()
    for row in rows:
        digest = hashlib.blake2b(len(row.tokens_T).to_bytes(8, "little"), digest_size=_DIGEST)
        for part in (row.tokens_T, row.places_n):
            digest.update(part.to(torch.int32).numpy().astype("<i4").tobytes())
        found += digest.digest()
    return (
        torch.frombuffer(found, dtype=torch.uint8).view(-1, _DIGEST)
        if found
        else torch.empty((0, _DIGEST), dtype=torch.uint8)
    )


def checksum_of(facts: Mapping[str, Any]) -> str:
    """A checksum of facts that JSON holds, whatever their order, in hexadecimal.

    Args:
        facts: By name; one of the name ``checksum`` does not count.
    """
    counted = {name: value for name, value in facts.items() if name != "checksum"}
    return hashlib.blake2b(json.dumps(counted, sort_keys=True).encode(), digest_size=_CHECKSUM).hexdigest()


def sealed(question: Question, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Tensors and facts as bytes, behind a checksum of them.

    Args:
        question: What they answer.
        tensors: By name, on any device.
        facts: What JSON can hold, by name.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(whole, {"facts": json.dumps({**facts, "question": question})})
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest() + content


def open_sealed(question: Question, data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of :func:`sealed`.

    Args:
        question: What was asked.
        data: What came.

    Raises:
        DamagedError: The bytes are not those that were sealed, or they answer another question.
    """
    content = data[_CHECKSUM:]
    if len(data) <= _CHECKSUM or hashlib.blake2b(content, digest_size=_CHECKSUM).digest() != data[:_CHECKSUM]:
        raise DamagedError(f"the answer ({len(data)} bytes) does not match its checksum")
    try:
        tensors, facts = load(content), _facts(content)
    except _UNREADABLE as error:
        raise DamagedError(f"the answer cannot be read ({error})") from error
    if facts.get("question") != question:
        raise DamagedError(f"the answer is one to {facts.get('question')!r}, not to {question!r}")
    return tensors, facts


def pack_request(rows: Sequence[ScoredRow], wish: Wish) -> bytes:
    """A request as bytes.

    Args:
        rows: At least one.
        wish: What is asked of all of them.
    """
    tensors = {
        "tokens": torch.cat([row.tokens_T for row in rows]).to(torch.int32),
        "lengths": torch.tensor([len(row.tokens_T) for row in rows], dtype=torch.int32),
        "places": torch.cat([row.places_n for row in rows]).to(torch.int32),
        "counts": torch.tensor([len(row.places_n) for row in rows], dtype=torch.int32),
    }
    facts = {"protocol": PROTOCOL, "format": wish.form, "top_k": wish.top_k, "vocab_size": wish.vocab_size}
    return save(tensors, {"facts": json.dumps(facts)})


def read_request(data: bytes, *, max_rows: int) -> tuple[list[ScoredRow], Wish]:
    """The inverse of :func:`pack_request`, of bytes from anybody.

    Args:
        data: The body of a request.
        max_rows: The most rows of one.

    Raises:
        RequestError: They are no request.
    """
    try:
        tensors, facts = load(data), _facts(data)
    except _UNREADABLE as error:
        raise RequestError(f"the body is no request in safetensors ({error})", 400) from error
    if facts.get("protocol") != PROTOCOL:
        raise RequestError(f"protocol {facts.get('protocol')!r}; this server speaks {PROTOCOL}", 400)
    wish = _read_wish(facts)
    if sorted(tensors) != sorted(_REQUEST):
        raise RequestError(f"a request has the tensors {', '.join(_REQUEST)}; got {', '.join(sorted(tensors))}", 400)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32 or tensor.ndim != 1:
            raise RequestError(f"{name} must be int32 with one dimension; got {tensor.dtype} {tuple(tensor.shape)}")
    tokens, lengths, places, counts = (tensors[name].long() for name in ("tokens", "lengths", "places", "counts"))
    if len(lengths) == 0 or len(lengths) != len(counts):
        raise RequestError(f"a request has as many lengths as counts, at least one; got {len(lengths)}, {len(counts)}")
    if len(lengths) > max_rows:
        raise RequestError(f"{len(lengths)} rows; a request has at most {max_rows} (serve.max_rows)", 413)
    if int(lengths.min()) < 2 or int(counts.min()) < 1:
        raise RequestError("a row has at least two tokens and one place")
    if int(lengths.sum()) != len(tokens) or int(counts.sum()) != len(places):
        raise RequestError(
            f"lengths and counts add up to {int(lengths.sum())} and {int(counts.sum())}; there are {len(tokens)} "
            f"tokens and {len(places)} places"
        )
    rows = list(map(ScoredRow, tokens.split(lengths.tolist()), places.split(counts.tolist())))
    for number, row in enumerate(rows):
        rising = bool((row.places_n[1:] > row.places_n[:-1]).all())
        if not rising or int(row.places_n[0]) < 0 or int(row.places_n[-1]) > len(row.tokens_T) - 2:
            raise RequestError(f"row {number}: places must rise within 0 … {len(row.tokens_T) - 2}")
    return rows, wish


def _read_wish(facts: Mapping[str, Any]) -> Wish:
    form, top_k, vocab_size = facts.get("format"), facts.get("top_k"), facts.get("vocab_size")
    if form not in ("top_k", "hidden"):
        raise RequestError(f"format must be top_k or hidden; got {form!r}")
    # A bool is an int to Python.
    if type(top_k) is not int or top_k < 0 or (form == "top_k") != (top_k > 0):
        raise RequestError(f"top_k must be a number above 0 with format top_k, else 0; got {top_k!r}")
    if type(vocab_size) is not int or vocab_size < 1:
        raise RequestError(f"vocab_size must be a number above 0; got {vocab_size!r}")
    return Wish(form, top_k, vocab_size)


def _facts(content: bytes) -> dict[str, Any]:
    """The facts in the header of safetensors that were read well, hence whose header is sound."""
    size = int.from_bytes(content[:8], "little")
    facts = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["facts"])
    if not isinstance(facts, dict):
        raise TypeError("its facts are no mapping")
    return facts
