"""What a training step is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amidkd.config import KernelsConfig
from amidkd.data import Example
from amidkd.training.objective import ScheduledObjective
from amidkd.training.weighting import AdaptiveSkew, TokenWeights

__all__ = ["Corpus", "LossSettings", "Tokens"]


@dataclass(frozen=True)
class LossSettings:
    """What a step minimises beside the teacher's signal.

    Args:
        objective: The objective of each step; None: cross-entropy alone.
        student_objective: Another one where the student wrote the text; None: the same.
        cross_entropy_weight: Weight of cross-entropy on the labels; text of the student's has none.
        temperature: Divides the logits of both sides.
        vocab_size: Vocabulary shared by teacher, student and tokenizer.
        kernels: Backend and memory of the loss.
        weights: What each token counts for.
        skew: DistiLLM-2's skew of each sequence; None: λ is the objective's.
        steps: Optimizer steps of the stage.
        warn_where_stuck: Whether to warn where ω says that the first step can teach nothing.
    """

    objective: ScheduledObjective | None = None
    student_objective: ScheduledObjective | None = None
    cross_entropy_weight: float = 0.0
    temperature: float = 1.0
    vocab_size: int | None = None
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    weights: TokenWeights | None = None
    skew: AdaptiveSkew | None = None
    steps: int = 1
    warn_where_stuck: bool = False

    def progress(self, step: int) -> float:
        """0 at the first optimizer step, 1 at the last.

        Args:
            step: Optimizer steps already made.
        """
        return min(1.0, step / (self.steps - 1)) if self.steps > 1 else 0.0

    def report(self, step: int) -> dict[str, float]:
        """What a log line says of the settings of a step: α, λ and β as they are then.

        Args:
            step: Optimizer steps already made.
        """
        found = {} if self.objective is None else self.objective.settings(step)
        if self.student_objective is not None:
            own = self.student_objective.settings(step)
            found |= {f"{name}_student_text": value for name, value in own.items()}
        if self.weights is not None and self.weights.beta is not None:
            found["beta"] = self.weights.beta.value(self.progress(step))
        return found

    def observe(self, step: int, loss: float, add_up: Callable[[list[float]], list[float]]) -> None:
        """Tell the schedules the mean loss of an optimizer step; every rank must call it.

        Args:
            step: Number of optimizer steps made before it.
            loss: Its loss, finite.
            add_up: Sums a list of numbers over all ranks.
        """
        for objective in (self.objective, self.student_objective):
            if objective is not None:
                objective.observe(step, loss)
        if self.weights is not None and self.weights.beta is not None:
            self.weights.beta.observe(loss, self.progress(step))
        if self.skew is not None:
            self.skew.finish_step(add_up)

    def state(self) -> dict[str, Any]:
        """What the schedules and averages remember, as JSON can hold it."""
        beta = None if self.weights is None else self.weights.beta
        return {
            "objective": None if self.objective is None else self.objective.state(),
            "student_objective": None if self.student_objective is None else self.student_objective.state(),
            "beta": None if beta is None else beta.state(),
            "skew": None if self.skew is None else self.skew.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            SettingError: It is the state of another objective.
        """
        beta = None if self.weights is None else self.weights.beta
        if self.objective is not None:
            self.objective.load_state(state["objective"])
        if self.student_objective is not None:
            self.student_objective.load_state(state["student_objective"])
        if beta is not None:
            beta.load_state(state["beta"])
        if self.skew is not None:
            self.skew.load_state(state["skew"])


@dataclass(frozen=True)
class Corpus:
    """Plain text for a next-token loss with a normaliser of its own.

    Args:
        windows: Windows of text.
        weight: Weight of the mean cross-entropy of the step's windows.
        per_step: Windows of an optimizer step over all ranks; None: as many as rows.
    """

    windows: Sequence[Example]
    weight: float = 1.0
    per_step: int | None = None


@dataclass(frozen=True)
class Tokens:
    """Supervised tokens of an optimizer step, over all its forward passes and ranks.

    Args:
        data: Of the rows.
        corpus: Of plain text beside them.
        student: Of ``data``, those that the student wrote.
        answers: How many sequences it wrote.
        finished: How many of these end in EOS.
    """

    data: int
    corpus: int = 0
    student: int = 0
    answers: int = 0
    finished: int = 0
