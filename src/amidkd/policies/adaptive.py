"""DistiLLM's adaptive off-policy schedule: how often the student's text is used, and how often it is new."""

from collections.abc import Sequence
from typing import Any, Literal, final

from amidkd.data import Example, idle
from amidkd.errors import SettingError
from amidkd.policies.base import StepPlan, check_state, draw
from amidkd.policies.writing import StudentWriter

__all__ = ["STEP", "AdaptivePolicy", "ReplayBuffer", "check_capacity"]

STEP = 0.1
"""How much φ rises at a time (Ko et al., ICML 2024, appendix B)."""


def check_capacity(capacity: int, rows_per_step: int) -> None:
    """Refuse a replay buffer smaller than a batch.

    Args:
        capacity: Rows in the buffer of one process.
        rows_per_step: Rows of one process in an optimizer step.

    Raises:
        SettingError: It is smaller.
    """
    if capacity < rows_per_step:
        raise SettingError(
            f"policy.capacity: the replay buffer of a process holds {capacity} sequences, fewer than the "
            f"{rows_per_step} that it learns from in a step; raise policy.capacity (it counts all processes), or "
            "lower the batch size"
        )


@final
class ReplayBuffer:
    """The newest rows of the student's text, up to a capacity.

    Args:
        capacity: Rows kept, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows: list[Example] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def full(self) -> bool:
        """Whether the next row pushes one out."""
        return len(self._rows) >= self.capacity

    def add(self, rows: Sequence[Example]) -> None:
        """Add rows; the oldest leave."""
        self._rows = [*self._rows, *rows][-self.capacity :]

    def sample(self, count: int, random: Any) -> list[Example]:
        """Different rows, drawn evenly.

        Args:
            count: How many, at most ``len(self)``.
            random: A generator of numpy.
        """
        return [self._rows[place] for place in random.choice(len(self._rows), size=count, replace=False)]

    def state(self) -> list[Example]:
        """The rows, oldest first."""
        return list(self._rows)

    def load_state(self, state: Sequence[Example]) -> None:
        """Take up what :meth:`state` gave."""
        self._rows = list(state)


@final
class AdaptivePolicy:
    """Ko et al., ICML 2024 (DistiLLM, algorithm 1).

    A step learns from the student's text with probability φ, one draw for all processes. φ rises by 0.1 whenever the
    validation loss is more than ``tolerance`` above the last one. Such a step draws from the replay buffer with the
    probability that ``replay_ratio`` gives, once the buffer is full; else the student writes, into the buffer.

    Args:
        writer: Writes the text.
        initial_threshold: φ at the start, in [0, 1].
        tolerance: In nats per token.
        replay_ratio: ½ throughout, t/T or 1 − t/T.
        capacity: Rows in this process's buffer.
        validation_steps: Steps between validations; None: an epoch.
        seed: Of the draws.
        rank: Which process this is; each draws from its own buffer.
        rows_per_step: Rows of this process in an optimizer step, at most.

    Raises:
        SettingError: The buffer is smaller than a batch.
    """

    def __init__(
        self,
        writer: StudentWriter,
        *,
        initial_threshold: float,
        tolerance: float,
        replay_ratio: Literal["constant", "increasing", "decreasing"],
        capacity: int,
        validation_steps: int | None,
        seed: int,
        rank: int = 0,
        rows_per_step: int,
    ) -> None:
        check_capacity(capacity, rows_per_step)
        self._writer, self._tolerance, self._ratio = writer, tolerance, replay_ratio
        self._every, self._seed, self._rank = validation_steps, seed, rank
        self._threshold = initial_threshold
        self._last_loss: float | None = None
        self._buffer = ReplayBuffer(capacity)

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer of this process."""
        return self._buffer

    def choose(self, plan: StepPlan) -> Sequence[Sequence[Example]] | None:
        """New or old text of the student, or None."""
        if plan.number % (self._every or plan.per_epoch) == 0:
            self._observe(plan.validate())
        learns, replays = draw(self._seed, plan.number).random(2)
        if learns >= self._threshold:
            return None
        # Processes fill up at different steps where one is left without a row; whether to write is decided together.
        full = plan.everywhere(self._buffer.full)
        if full and replays < self._replay(plan.progress):
            return self._replayed(plan)
        written = self._writer.write([plan.places(plan.number)], step=plan.number)[0]
        self._buffer.add([row for rows in written for row in rows if row.row >= 0])
        return written

    def _observe(self, loss: float) -> None:
        if self._last_loss is not None and loss > self._last_loss + self._tolerance:
            self._threshold = min(1.0, self._threshold + STEP)
        self._last_loss = loss

    def _replay(self, progress: float) -> float:
        return {"constant": 0.5, "increasing": progress, "decreasing": 1 - progress}[self._ratio]

    def _replayed(self, plan: StepPlan) -> list[list[Example]]:
        passes = plan.places(plan.number)
        count = sum(place >= 0 for places in passes for place in places)
        old = iter(self._buffer.sample(count, draw(self._seed, plan.number, 1 + self._rank)))
        examples = self._writer.examples
        return [[next(old) if place >= 0 else idle(examples[~place]) for place in places] for places in passes]

    def report(self) -> dict[str, float]:
        """``threshold`` φ, the last ``validation_loss``, and ``buffer``: rows in the first process's."""
        loss = {} if self._last_loss is None else {"validation_loss": self._last_loss}
        return {"threshold": self._threshold, "buffer": float(len(self._buffer)), **loss}

    def state(self) -> dict[str, Any]:
        """φ, the last validation loss and the buffer."""
        return {"threshold": self._threshold, "last_loss": self._last_loss, "buffer": self._buffer.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        check_state(state, ["threshold", "last_loss", "buffer"])
        self._threshold, self._last_loss = state["threshold"], state["last_loss"]
        self._buffer.load_state(state["buffer"])
