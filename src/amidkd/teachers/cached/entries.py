"""What a cache has one row of: a sequence, known by its token ids alone."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from amidkd.data import Example

__all__ = ["KEY_BYTES", "Entry", "entries_of", "hash_entries", "key_of"]

KEY_BYTES = 16
"""Bytes of a key: two of 2^40 sequences share one with a probability below 1e-14."""


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """A sequence whose signal is stored.

    Args:
        key: :func:`key_of` its tokens.
        tokens: Token ids [T], int32.
        targets: True where a token is supervised [T]; the first never is.
        row: ``Row.index`` of the first row that it comes from.
    """

    key: bytes
    tokens: np.ndarray
    targets: np.ndarray
    row: int

    def token_count(self) -> int:
        """Number of supervised tokens."""
        return int(self.targets.sum())


def key_of(tokens: Sequence[int] | np.ndarray) -> bytes:
    """What a sequence is found by: BLAKE2b of its token ids as int32, little-endian.

    Args:
        tokens: Token ids [T].
    """
    return hashlib.blake2b(np.asarray(tokens).astype("<i4").tobytes(), digest_size=KEY_BYTES).digest()


def entries_of(examples: Iterable[Example]) -> list[Entry]:
    """Examples as entries, in order: equal tokens are one entry, with every position that any of them supervises.

    Args:
        examples: Rows as tokens; those without a supervised token are left out.
    """
    found: dict[bytes, Entry] = {}
    for example in examples:
        if not any(example.targets):
            continue
        tokens, targets = np.asarray(example.tokens, dtype=np.int32), np.asarray(example.targets, dtype=bool)
        key = key_of(tokens)
        known = found.get(key)
        if known is None:
            found[key] = Entry(key, tokens, targets, example.row)
        else:
            found[key] = Entry(key, known.tokens, known.targets | targets, known.row)
    return list(found.values())


def hash_entries(entries: Iterable[Entry]) -> str:
    """SHA-256 of keys and supervised positions, in order.

    Args:
        entries: Entries.
    """
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(entry.key + np.packbits(entry.targets).tobytes())
    return digest.hexdigest()
