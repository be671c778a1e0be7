"""Rows as tokens, and batches of them: what is supervised is a mask made from lengths, never from token ids."""

# Tensors and what gives them carry their shape in their name.
# ruff: noqa: N802, N815

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from amidkd.errors import SettingError

__all__ = ["ORIGINS", "Collator", "Example", "ExampleDataset", "Origin", "Sequences", "collate", "idle"]

Origin = Literal["data", "teacher", "student"]

#: Who wrote a sequence; ``Sequences.origin_B`` holds positions in this tuple.
ORIGINS: tuple[Origin, ...] = get_args(Origin)


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens.

    Args:
        tokens: Token ids, at least one.
        targets: True where a token is supervised. The first never is: nothing comes before it to predict it.
        row: ``Row.index`` of the row that it comes from.
        origin: Who wrote the supervised tokens.

    Raises:
        ValueError: Lengths differ, there is no token, or the first is supervised.
    """

    tokens: tuple[int, ...]
    targets: tuple[bool, ...]
    row: int
    origin: Origin = "data"

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.targets):
            raise ValueError(
                f"Example needs as many targets as tokens, at least one; got {len(self.tokens)} tokens "
                f"and {len(self.targets)} targets"
            )
        if self.targets[0]:
            raise ValueError("Example.targets[0] must be False: nothing comes before the first token to predict it")

    def token_count(self) -> int:
        """Number of supervised tokens."""
        return sum(self.targets)


def idle(example: Example) -> Example:
    """A row that is there, so that a process has something to run, and teaches nothing; its ``row`` is below 0."""
    return replace(example, targets=(False,) * len(example.targets), row=min(example.row, -1 - example.row))


@dataclass(frozen=True, eq=False)
class Sequences:
    """A batch, padded on the right.

    Args:
        tokens_BT: Token ids [B, T]; whatever stands where ``attention_BT`` is 0 means nothing.
        attention_BT: 1 on tokens, 0 on padding [B, T].
        targets_BT: True where a token is supervised [B, T]. Column 0 is ignored.
        rows_B: ``Row.index`` of each sequence [B]; below 0 where it only fills a batch.
        origin_B: Position in :data:`ORIGINS` of each sequence [B].
    """

    tokens_BT: Tensor
    attention_BT: Tensor
    targets_BT: Tensor
    rows_B: Tensor
    origin_B: Tensor

    def predicts_BT(self) -> Tensor:
        """True where position t predicts a supervised token: the targets shifted left by one [B, T]."""
        predicts = torch.zeros_like(self.targets_BT)
        predicts[:, :-1] = self.targets_BT[:, 1:]
        return predicts

    def labels_N(self) -> Tensor:
        """Ids of the supervised tokens [N], in the row-major order of :meth:`predicts_BT`."""
        return self.tokens_BT[:, 1:][self.targets_BT[:, 1:]]

    def origin_N(self) -> Tensor:
        """Position in :data:`ORIGINS` of each supervised token's writer [N], in the order of :meth:`predicts_BT`."""
        return self.origin_B[:, None].expand_as(self.targets_BT)[:, 1:][self.targets_BT[:, 1:]]

    def sequence_N(self) -> Tensor:
        """Place in the batch of each supervised token's sequence [N], in the order of :meth:`predicts_BT`."""
        places = torch.arange(self.targets_BT.shape[0], device=self.targets_BT.device)
        return places[:, None].expand_as(self.targets_BT)[:, 1:][self.targets_BT[:, 1:]]

    def token_count(self) -> int:
        """Number N of supervised tokens. Reads from the device."""
        return int(self.targets_BT[:, 1:].sum())

    def to(self, device: torch.device | str) -> "Sequences":
        """The same batch on a device."""
        return Sequences.from_batch({name: tensor.to(device) for name, tensor in self.as_batch().items()})

    def as_batch(self) -> dict[str, Tensor]:
        """The batch as named tensors, the form in which ``accelerate`` moves and gathers it."""
        return {
            "input_ids": self.tokens_BT,
            "attention_mask": self.attention_BT,
            "targets": self.targets_BT,
            "rows": self.rows_B,
            "origin": self.origin_B,
        }

    @classmethod
    def from_batch(cls, batch: dict[str, Any]) -> "Sequences":
        """The inverse of :meth:`as_batch`."""
        return cls(
            tokens_BT=batch["input_ids"],
            attention_BT=batch["attention_mask"],
            targets_BT=batch["targets"],
            rows_B=batch["rows"],
            origin_B=batch["origin"],
        )


def collate(examples: Sequence[Example], *, pad_id: int, multiple_of: int | None = None) -> Sequences:
    """Pad examples on the right to one length.

    Args:
        examples: At least one.
        pad_id: Token id of the padding. It may be a token that also occurs in the text (pad = EOS).
        multiple_of: Round the length up to a multiple of this.

    Returns:
        The batch, on the CPU.

    Raises:
        ValueError: There is no example.

    Example:
        >>> batch = collate([Example((1, 5, 2), (False, False, True), row=0)], pad_id=2, multiple_of=4)
        >>> batch.tokens_BT.tolist(), batch.predicts_BT().tolist(), batch.labels_N().tolist()
        ([[1, 5, 2, 2]], [[False, True, False, False]], [2])
    """
    if not examples:
        raise ValueError("collate needs at least one example")
    width = max(len(example.tokens) for example in examples)
    if multiple_of is not None:
        width = -(-width // multiple_of) * multiple_of
    spare = [width - len(example.tokens) for example in examples]
    rows = list(zip(examples, spare, strict=True))
    return Sequences(
        tokens_BT=torch.tensor([[*e.tokens, *([pad_id] * n)] for e, n in rows], dtype=torch.long),
        attention_BT=torch.tensor([[1] * len(e.tokens) + [0] * n for e, n in rows], dtype=torch.long),
        targets_BT=torch.tensor([[*e.targets, *([False] * n)] for e, n in rows], dtype=torch.bool),
        rows_B=torch.tensor([e.row for e in examples], dtype=torch.long),
        origin_B=torch.tensor([ORIGINS.index(e.origin) for e in examples], dtype=torch.long),
    )


@dataclass(frozen=True)
class Collator:
    """:func:`collate` as the object a data loader takes; it gives the named tensors of a batch."""

    pad_id: int
    multiple_of: int | None = None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pad examples and return ``Sequences.as_batch()``."""
        return collate(examples, pad_id=self.pad_id, multiple_of=self.multiple_of).as_batch()


class ExampleDataset(Dataset[Example]):
    """Examples as a data set for a data loader.

    Args:
        examples: At least one.

    Raises:
        SettingError: There is no example.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        if not examples:
            raise SettingError("no row is left to train on: every row was dropped or has no completion")
        self.examples = list(examples)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def token_count(self) -> int:
        """Number of supervised tokens in one pass."""
        return sum(example.token_count() for example in self.examples)
