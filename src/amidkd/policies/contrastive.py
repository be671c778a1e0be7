"""DistiLLM-2: the teacher's and the student's answer to each prompt, side by side."""

from collections.abc import Sequence
from typing import Any, Literal, final

from amidkd.data import Example, idle
from amidkd.policies.base import StepPlan
from amidkd.policies.writing import Ahead, StudentWriter

__all__ = ["ContrastivePolicy"]


@final
class ContrastivePolicy:
    """Ko et al., ICML 2025 (DistiLLM-2): each row comes twice, with the text of the data set and with the student's.

    Which objective and weight each side has is the trainer's business, who tells them apart by their origin.

    Args:
        writer: Writes the student's side; its rows are the teacher's.
        refresh: Whether the student writes for a whole epoch at its start, or for each step.
    """

    def __init__(self, writer: StudentWriter, *, refresh: Literal["epoch", "step"]) -> None:
        self._ahead, self._examples, self._refresh = Ahead(writer), writer.examples, refresh
        self._staleness = 0

    def choose(self, plan: StepPlan) -> Sequence[Sequence[Example]]:
        """Both answers to the step's prompts, twice as many rows as prompts."""
        step = plan.number
        end = plan.epoch_end() if self._refresh == "epoch" else step + 1
        written = self._ahead.take(plan, lambda: range(step, end))
        self._staleness = self._ahead.staleness(plan)
        examples = self._examples
        return [
            [*(examples[place] if place >= 0 else idle(examples[~place]) for place in places), *rows]
            for places, rows in zip(plan.places(step), written, strict=True)
        ]

    def report(self) -> dict[str, float]:
        """``staleness``: how many optimizer steps older than the weights the student's text was."""
        return {"staleness": float(self._staleness)}

    def state(self) -> dict[str, Any]:
        """Text that is written and not yet learnt from."""
        return self._ahead.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        self._ahead.load_state(state)
