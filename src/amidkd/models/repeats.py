"""The rule that no run of n tokens comes twice in a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Repeats"]


class Repeats:
    """Texts that are being written, and which tokens would repeat a run of n.

    The rule is that of ``no_repeat_ngram_size`` in ``transformers``: the prompt counts too.

    Args:
        texts: Token ids of each text so far.
        size: n, above 0.

    Example:
        >>> Repeats([[5, 6, 7, 5, 6]], 3).banned(0)
        {7}
    """

    def __init__(self, texts: Sequence[Sequence[int]], size: int) -> None:
        self._size = size
        self._ends: list[tuple[int, ...]] = [() for _ in texts]
        self._seen: list[dict[tuple[int, ...], set[int]]] = [{} for _ in texts]
        for place, text in enumerate(texts):
            for token in text:
                self.add(place, token)

    def add(self, place: int, token: int) -> None:
        """A text goes on with a token."""
        before = self._ends[place]
        if len(before) == self._size - 1:
            self._seen[place].setdefault(before, set()).add(token)
        self._ends[place] = (*before, token)[-(self._size - 1) :] if self._size > 1 else ()

    def banned(self, place: int) -> set[int]:
        """Tokens that would make a run which the text already has."""
        return self._seen[place].get(self._ends[place], set())

    def ruled_out(self, logits_BV: Tensor, places: Sequence[int]) -> Tensor:
        """Logits with −inf at banned tokens.

        Args:
            logits_BV: Logits of the next token of some texts.
            places: Which texts.
        """
        width = logits_BV.shape[1]
        pairs = [(row, token) for row, place in enumerate(places) for token in self.banned(place) if token < width]
        if not pairs:
            return logits_BV
        rows, tokens = torch.tensor(pairs, device=logits_BV.device).unbind(dim=1)
        logits = logits_BV.clone()
        logits[rows, tokens] = float("-inf")
        return logits
