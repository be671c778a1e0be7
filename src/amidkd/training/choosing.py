"""Which rows an optimizer step is made of: asks the policy, counts, and stops well where text cannot be written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from amidkd.data import Example, Sequences
from amidkd.generation import GenerationError
from amidkd.policies import DatasetPolicy, Policy, StepPlan
from amidkd.training.batches import EpochBatches
from amidkd.training.settings import Tokens

__all__ = ["Chooser"]


@dataclass
class Chooser:
    """The policy as the trainer asks it.

    Args:
        policy: Whose text is learnt from.
        batches: Which rows of the data set belong to which step.
        passes: Forward passes of an optimizer step.
        total: Optimizer steps of the stage.
        validate: Measures the validation loss.
        add_up: Sums a list of numbers over all ranks.
        eos_ids: Ids that end an answer.
    """

    policy: Policy
    batches: EpochBatches
    passes: int
    total: int
    validate: Callable[[], float]
    add_up: Callable[[list[float]], list[float]]
    eos_ids: frozenset[int]
    _before: Any = field(default=None, init=False, repr=False)

    @property
    def writes(self) -> bool:
        """Whether the policy may have the student write."""
        return not isinstance(self.policy, DatasetPolicy)

    def rows(self, step: int) -> Sequence[Sequence[Example]] | None:
        """The rows of each forward pass of a step, or None for those of the data set; every rank must call it.

        Args:
            step: Optimizer steps made.

        Raises:
            GenerationError: Some rank could not have its text written. Raised on all; the policy is as it was before.
        """
        if not self.writes:
            return None
        plan = StepPlan(
            number=step,
            total=self.total,
            per_epoch=self.batches.steps_per_epoch(self.passes),
            places=lambda number: self.batches.of_step(number, self.passes),
            validate=self.validate,
            everywhere=lambda holds: self.add_up([float(not holds)])[0] == 0,
        )
        self._before, failure, chosen = self.policy.state(), None, None
        try:
            chosen = self.policy.choose(plan)
        except GenerationError as error:
            failure = error
        if self.add_up([float(failure is not None)])[0] > 0:
            self.take_back()
            raise failure or GenerationError("another process could not have its text written")
        return chosen

    def take_back(self) -> None:
        """Bring the policy to where it was before the last :meth:`rows`, since that step cannot be made."""
        if self._before is not None:
            self.policy.load_state(self._before)

    def count(
        self,
        rows: Sequence[Sequence[Example]] | None,
        sequences: Sequence[Sequences],
        corpus: Sequence[Sequences],
    ) -> Tokens:
        """Count a step over all ranks; every rank must call it.

        Args:
            rows: What :meth:`rows` gave.
            sequences: The rows of each forward pass as tensors.
            corpus: Plain text of each forward pass.
        """
        written = [row for part in rows or () for row in part if row.origin == "student" and row.row >= 0]
        counts = [
            sum(each.token_count() for each in sequences),
            sum(each.token_count() for each in corpus),
            sum(row.token_count() for row in written),
            len(written),
            sum(row.tokens[-1] in self.eos_ids for row in written),
        ]
        return Tokens(*map(int, self.add_up([float(number) for number in counts])))
