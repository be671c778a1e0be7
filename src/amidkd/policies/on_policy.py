"""Learn from what the student writes: in every step, or in a part of the steps."""

from collections.abc import Sequence
from typing import Any, final

from amidkd.data import Example
from amidkd.policies.base import StepPlan, draw
from amidkd.policies.writing import Ahead, StudentWriter

__all__ = ["OnPolicy"]


@final
class OnPolicy:
    """Agarwal et al., ICLR 2024 (GKD, algorithm 1): a step learns from the student's text with probability
    ``fraction``, one draw for all processes, and from the data set's otherwise.

    Args:
        writer: Writes the text.
        fraction: Part of the optimizer steps that are on-policy, in [0, 1].
        steps_per_generation: Text is written for the on-policy steps among this many steps at once.
        seed: Of the draws.
    """

    def __init__(
        self, writer: StudentWriter, *, fraction: float = 1.0, steps_per_generation: int = 1, seed: int
    ) -> None:
        self._ahead, self._fraction, self._span, self._seed = Ahead(writer), fraction, steps_per_generation, seed
        self._staleness: int | None = None

    def is_on_policy(self, step: int) -> bool:
        """Whether a step learns from the student's text.

        Args:
            step: Optimizer steps made before it.
        """
        return bool(draw(self._seed, step).random() < self._fraction)

    def choose(self, plan: StepPlan) -> Sequence[Sequence[Example]] | None:
        """The student's answers to the step's prompts, or None."""
        step = plan.number
        if not self.is_on_policy(step):
            self._staleness = None
            return None
        span = range(step, min(step + self._span, plan.total))
        rows = self._ahead.take(plan, lambda: [n for n in span if self.is_on_policy(n)])
        self._staleness = self._ahead.staleness(plan)
        return rows

    def report(self) -> dict[str, float]:
        """``staleness``: how many optimizer steps older than the weights the step's text was."""
        return {} if self._staleness is None else {"staleness": float(self._staleness)}

    def state(self) -> dict[str, Any]:
        """Text that is written and not yet learnt from."""
        return self._ahead.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        self._ahead.load_state(state)
