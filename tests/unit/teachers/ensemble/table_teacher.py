"""A teacher that is a table, for the tests of ensembles."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from amidkd.data import Sequences
from amidkd.signals import Logits, Signal, TopK

V = 11


@dataclass
class Table:
    """A teacher that is a table: the last token decides what it says. It notes what it is asked."""

    logits: torch.Tensor
    vocab_size: int = V
    k: int | None = None
    in_process: bool = True
    asked: list[Sequences] = field(default_factory=list)
    expected: list[Sequences] = field(default_factory=list)
    closed: bool = False

    def signal(self, sequences: Sequences) -> Signal:
        self.asked.append(sequences)
        logits = self.logits[sequences.tokens_BT[sequences.predicts_BT()]]
        if self.k is None:
            return Logits(logits)
        found = logits.log_softmax(-1).topk(self.k)
        return TopK(found.indices, found.values)

    def expect(self, batches: Sequence[Sequences]) -> None:
        self.expected += batches

    def begin_step(self, step: int) -> None: ...

    def fingerprint(self) -> str:
        return str(float(self.logits.double().sum()))

    def close(self) -> None:
        self.closed = True


def table(seed: int, *, width: int = V, **settings: Any) -> Table:
    draw = torch.Generator().manual_seed(seed)
    return Table(2 * torch.randn(V, width, generator=draw, dtype=torch.float64), **settings)
