"""What each token counts for: by who wrote it, by entropy, by disagreement; and a skew for each sequence."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from amidkd.config import WeightingConfig
from amidkd.data import ORIGINS, Sequences
from amidkd.maths.schedule import Schedule
from amidkd.signals import Hidden, Logits
from amidkd.teachers import Said
from amidkd.training.token_measures import token_entropy, token_log_probs, token_variation

__all__ = ["STUDENT", "AdaptiveSkew", "TokenWeights"]

STUDENT = ORIGINS.index("student")

_LEAST_SKEW = 0.01
_MEMORY = 0.9
"""Decay of the average distance, per optimizer step."""


class TokenWeights:
    """w = origin · (1 − strength + strength · m): see :class:`~amidkd.config.WeightingConfig`.

    Args:
        config: The run file's ``objective.weighting``.
        beta: Of DistiLLM-2: the student's text counts β times, other text 2 − β times; a function of progress.
    """

    def __init__(self, config: WeightingConfig, beta: Schedule | None = None) -> None:
        self._config, self.beta = config, beta
        self._by_origin = [getattr(config, origin) for origin in ORIGINS]

    @property
    def neutral(self) -> bool:
        """Whether every weight is 1 throughout."""
        measured = self._config.by != "none" and self._config.strength > 0
        return self.beta is None and not measured and self._by_origin == [1.0] * len(ORIGINS)

    @torch.no_grad()
    def of(
        self,
        sequences: Sequences,
        *,
        progress: float,
        student: Hidden | Logits,
        teacher: Said | None,
        vocab_size: int | None,
        **kernels: Any,
    ) -> Tensor | None:
        """The weight of each supervised token [N], at least 0; None where all are 1.

        Args:
            sequences: The rows.
            progress: 0 at the first optimizer step, 1 at the last.
            student: What the student says at the supervised positions.
            teacher: What the teacher says there; None in fine-tuning, where ``by`` cannot ask for it.
            vocab_size: Vocabulary shared by both.
            kernels: ``backend`` and ``memory_mb`` of the loss.
        """
        if self.neutral:
            return None
        factors = list(self._by_origin)
        if self.beta is not None:
            beta = self.beta.value(progress)
            factors = [f * (beta if place == STUDENT else 2 - beta) for place, f in enumerate(factors)]
        origin_N = sequences.origin_N()
        weights_N = torch.tensor(factors, dtype=torch.float32, device=origin_N.device)[origin_N]
        config = self._config
        if config.by == "none" or config.strength == 0:
            return weights_N
        if config.by == "disagreement":
            assert teacher is not None
            measure_N = token_variation(student, teacher, vocab_size=vocab_size, **kernels)
        else:
            signal = student if config.by == "student_entropy" else teacher
            assert signal is not None
            measure_N = -torch.expm1(-token_entropy(signal, vocab_size=vocab_size, **kernels))
        measure_N = measure_N.to(weights_N).clamp(0, 1)
        measure_N = measure_N if config.favour == "high" else 1 - measure_N
        return weights_N * (1 - config.strength + config.strength * measure_N)


class AdaptiveSkew:
    """DistiLLM-2's skew for each sequence (Ko et al., ICML 2025, section 3.2).

    d = p̄(y) − q̄(y) on text that is not the student's, and q̄(y) − p̄(y) on its own, where p̄ and q̄ are the geometric means
    of what teacher and student give to the tokens of a sequence y; m is the average of d over earlier steps. By
    log(p/(κp + (1−κ)q)) ≈ (1−κ)(p − q) the skew κ = 1 − (1−κ₀)·m/d keeps the first-order term alike for all sequences;
    within [0.01, κ₀], so that where the student is close, less of the other side is mixed in. κ = κ₀ where d ≤ 0.

    The average takes in a step's sequences when all of them are there, on all processes, so that it does not depend on
    how they are spread.
    """

    def __init__(self) -> None:
        self._mean: list[float | None] = [None, None]
        self._sums = torch.zeros(2, 2, dtype=torch.float64)

    @torch.no_grad()
    def of(
        self,
        sequences: Sequences,
        *,
        base: tuple[float, float],
        student: Hidden | Logits,
        teacher: Said,
        vocab_size: int | None,
        **kernels: Any,
    ) -> Tensor:
        """κ of each supervised token [N], alike within a sequence.

        Args:
            sequences: The rows.
            base: κ₀ of text that is not the student's, and of the student's.
            student: What the student says at the supervised positions.
            teacher: What the teacher says there.
            vocab_size: Vocabulary shared by both.
            kernels: ``backend`` and ``memory_mb`` of the loss.
        """
        labels_N, place_N = sequences.labels_N(), sequences.sequence_N()
        rows = len(sequences.origin_B)
        count_B = place_N.new_zeros(rows).index_add(0, place_N, torch.ones_like(place_N)).clamp(min=1)

        def typical(signal: Said) -> Tensor:
            log_N = token_log_probs(signal, labels_N, vocab_size=vocab_size, **kernels).double()
            return torch.exp(log_N.new_zeros(rows).index_add(0, place_N, log_N) / count_B)

        own_B = sequences.origin_B == STUDENT
        distance_B = typical(teacher) - typical(student)
        distance_B = torch.where(own_B, -distance_B, distance_B)
        there_B = sequences.targets_BT[:, 1:].any(dim=1)
        skew_B = distance_B.new_empty(rows)
        for side, mine_B in enumerate((~own_B, own_B)):
            found = distance_B[mine_B & there_B]
            self._sums[side] += torch.tensor([float(found.sum()), len(found)], dtype=torch.float64)
            skew_B[mine_B] = _skew(distance_B[mine_B], self._mean[side], base[side])
        return skew_B[place_N].float()

    def finish_step(self, add_up: Callable[[list[float]], list[float]]) -> None:
        """Take the step's sequences into the averages; every rank must call it.

        Args:
            add_up: Sums a list of numbers over all ranks.
        """
        sums = add_up(self._sums.flatten().tolist())
        for side, (total, count) in enumerate(zip(sums[::2], sums[1::2], strict=True)):
            if count:
                last, now = self._mean[side], total / count
                self._mean[side] = now if last is None else _MEMORY * last + (1 - _MEMORY) * now
        self._sums.zero_()

    def state(self) -> list[float | None]:
        """The averages of both sides."""
        return list(self._mean)

    def load_state(self, state: list[float | None]) -> None:
        """Take up what :meth:`state` gave."""
        self._mean = list(state)


def _skew(distance_B: Tensor, mean: float | None, base: float) -> Tensor:
    if mean is None or mean <= 0:
        return torch.full_like(distance_B, base)
    close = distance_B > 0
    found = 1 - (1 - base) * mean / torch.where(close, distance_B, 1.0)
    return torch.where(close, found.clamp(min(_LEAST_SKEW, base), base), base)
