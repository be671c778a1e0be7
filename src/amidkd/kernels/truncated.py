"""Truncated teachers: a student merged to K tokens and a tail, and its gradient spread over V again."""

import torch
from torch import Tensor

from amidkd.kernels.heads import piece_rows

__all__ = ["Merged"]


class Merged:
    """K tokens and a tail of n students, of which only some at a time are V wide.

    Args:
        logits: [N, ≥ V], any floating dtype.
        index: Which rows are meant [n], or None for all.
        ids: [n, K] in 0 … V; V is an outcome that cannot occur.
        vocab_size: V.
        dtype: Of the arithmetic.
    """

    def __init__(
        self, logits: Tensor, index: Tensor | None, ids: Tensor, *, vocab_size: int, dtype: torch.dtype
    ) -> None:
        self._logits = logits
        self._index = index
        self._ids = ids
        self._vocab_size = vocab_size
        self._tail = torch.empty((ids.shape[0], 1), dtype=dtype, device=ids.device)
        self._step = piece_rows(ids.shape[0], vocab_size + 1, ids.device)
        self._wide = torch.empty((self._step, vocab_size + 1), dtype=dtype, device=ids.device)

    def outcomes(self) -> Tensor:
        """The logits of the K + 1 outcomes [n, K + 1]; −inf for a tail without mass."""
        ids, tail = self._ids, self._tail
        chosen = torch.empty(ids.shape, dtype=tail.dtype, device=tail.device)
        for start in range(0, ids.shape[0], self._step):
            stop = min(start + self._step, ids.shape[0])
            wide = self._load(start, stop)
            torch.gather(wide, 1, ids[start:stop], out=chosen[start:stop])
            wide.scatter_(1, ids[start:stop], -torch.inf)
            top = wide.amax(-1, keepdim=True)
            shift = top.masked_fill(top == -torch.inf, 0.0)
            total = wide.sub_(shift).exp_().sum(-1, keepdim=True)
            tail[start:stop] = total.log_().add_(shift)
        return torch.cat([chosen, tail], dim=1)

    def spread(self, slope: Tensor, target: Tensor, onehot: tuple[Tensor, Tensor] | None) -> None:
        """Write the gradient over V: that of the tail is shared among its tokens by their probabilities.

        Args:
            slope: The gradient with respect to ``outcomes()`` [n, K + 1].
            target: Out [N, ≥ V], rows as those of the logits, whose own memory it may be.
            onehot: Ids [n], and what the gradient of each is less [n]; None: nothing.
        """
        ids, V = self._ids, self._vocab_size
        empty = self._tail.masked_fill(self._tail == -torch.inf, torch.inf)
        for start in range(0, ids.shape[0], self._step):
            stop = min(start + self._step, ids.shape[0])
            wide = self._load(start, stop).sub_(empty[start:stop]).exp_().mul_(slope[start:stop, -1:])
            wide.scatter_(1, ids[start:stop], slope[start:stop, :-1])
            if onehot is not None:
                labels, less = (part[start:stop].unsqueeze(-1) for part in onehot)
                wide.scatter_add_(1, labels, -less)
            if self._index is None:
                target[start:stop, :V] = wide[:, :V]
            else:
                target[self._index[start:stop], :V] = wide[:, :V].to(target.dtype)

    def _load(self, start: int, stop: int) -> Tensor:
        wide, V = self._wide[: stop - start], self._vocab_size
        some = self._logits[start:stop] if self._index is None else self._logits[self._index[start:stop]]
        wide[:, :V] = some[:, :V]
        wide[:, V] = -torch.inf
        return wide
