"""From the run file's ``objective`` to the objective of each step: α and λ as schedules, saved with the checkpoint."""

from collections.abc import Mapping
from typing import Any

from amidkd.config import (
    AdaptiveSchedule,
    ConstantSchedule,
    CosineSchedule,
    DivergenceConfig,
    LinearSchedule,
    ObjectiveConfig,
    PiecewiseSchedule,
    ScheduleConfig,
    SumConfig,
    TermConfig,
)
from amidkd.errors import SettingError
from amidkd.maths import Divergence, Objective, WeightedSum, divergence
from amidkd.maths.objective import AnyObjective
from amidkd.maths.schedule import Adaptive, Constant, Cosine, Linear, Piecewise, Schedule

__all__ = ["ScheduledObjective", "learns_through_assistant", "make_schedule", "objective_at"]


class ScheduledObjective:
    """The objective as a function of the step.

    Progress is 0 at the first optimizer step and 1 at the last. A schedule that follows the loss is told the mean
    loss of each step when it is made.

    Args:
        config: The run file's ``objective``.
        steps: Optimizer steps of the stage, at least 1.

    Raises:
        SettingError: A divergence or a schedule that cannot be made.
    """

    def __init__(self, config: SumConfig, *, steps: int) -> None:
        self._steps = steps
        terms = [(1.0, config)] if config.terms is None else [(term.weight, term) for term in config.terms]
        self._single = config.terms is None
        self._terms = [_Term(weight, term) for weight, term in terms]

    def at(self, step: int) -> AnyObjective:
        """The objective of an optimizer step.

        Args:
            step: Number of optimizer steps already made.
        """
        made = [(term.weight, term.at(self._progress(step))) for term in self._terms]
        return made[0][1] if self._single else WeightedSum(tuple(made))

    def settings(self, step: int) -> dict[str, float]:
        """``alpha`` and ``lam`` of a step for each term with an assistant; the second's are ``alpha_2`` and ``lam_2``.

        Args:
            step: Number of optimizer steps already made.
        """
        found: dict[str, float] = {}
        for number, term in enumerate(self._terms, start=1):
            if term.has_assistant:
                suffix = "" if number == 1 else f"_{number}"
                progress = self._progress(step)
                found[f"alpha{suffix}"] = term.alpha.value(progress)
                found[f"lam{suffix}"] = term.lam.value(progress)
        return found

    def observe(self, step: int, loss: float) -> None:
        """Tell the schedules the mean loss of an optimizer step.

        Args:
            step: Number of optimizer steps made before it.
            loss: Its loss, finite.
        """
        for term in self._terms:
            for schedule in (term.alpha, term.lam):
                schedule.observe(loss, self._progress(step))

    def state(self) -> list[dict[str, Any]]:
        """What the schedules remember, as JSON can hold it."""
        return [{"alpha": term.alpha.state(), "lam": term.lam.state()} for term in self._terms]

    def load_state(self, state: list[Mapping[str, Any]]) -> None:
        """Take up what ``state`` gave.

        Raises:
            SettingError: It is the state of another objective.
        """
        if len(state) != len(self._terms):
            raise SettingError(f"objective: the checkpoint holds {len(state)} terms, this run has {len(self._terms)}")
        for term, saved in zip(self._terms, state, strict=True):
            term.alpha.load_state(saved["alpha"])
            term.lam.load_state(saved["lam"])

    def _progress(self, step: int) -> float:
        return min(1.0, step / (self._steps - 1)) if self._steps > 1 else 0.0


class _Term:
    """One divergence with its weight and schedules."""

    def __init__(self, weight: float, config: TermConfig) -> None:
        self.weight, self._config = weight, config
        self._divergence = _divergence(config.divergence)
        self.alpha, self.lam = make_schedule(config.alpha), make_schedule(config.lam)
        self.has_assistant = "assistant" in config.between

    def at(self, progress: float) -> Objective:
        return Objective(
            divergence=self._divergence,
            between=self._config.between,
            alpha=self.alpha.value(progress),
            lam=self.lam.value(progress),
            detach_assistant=self._config.detach_assistant,
        )


def objective_at(config: ObjectiveConfig, progress: float) -> AnyObjective:
    """The objective at a part of the run.

    Args:
        config: The run file's ``objective``.
        progress: 0 at the first step, 1 at the last; a schedule that follows the loss is at its floor.
    """
    terms = [(1.0, config)] if config.terms is None else [(term.weight, term) for term in config.terms]
    made = [(weight, _Term(weight, term).at(progress)) for weight, term in terms]
    return made[0][1] if config.terms is None else WeightedSum(tuple(made))


def make_schedule(setting: ScheduleConfig) -> Schedule:
    """A number or a schedule of the run file as a schedule.

    Args:
        setting: ``objective.alpha`` or ``objective.lam``.
    """
    if isinstance(setting, ConstantSchedule):
        return Constant(setting.value)
    if isinstance(setting, LinearSchedule):
        return Linear(start=setting.start, end=setting.end)
    if isinstance(setting, CosineSchedule):
        return Cosine(start=setting.start, end=setting.end)
    if isinstance(setting, PiecewiseSchedule):
        return Piecewise(setting.points)
    if isinstance(setting, AdaptiveSchedule):
        return Adaptive(start=setting.start, end=setting.end, rate=setting.rate, smoothing=setting.smoothing)
    return Constant(float(setting))


def learns_through_assistant(config: ObjectiveConfig) -> bool:
    """Whether the student gets its gradient through the assistant alone, so that nothing is learnt where ω ≈ 0.

    Args:
        config: The run file's ``objective``.
    """
    terms = [config] if config.terms is None else config.terms
    through = all("assistant" in term.between and "student" not in term.between for term in terms)
    return through and config.cross_entropy_weight == 0


def _divergence(config: DivergenceConfig) -> Divergence:
    return divergence(config.name, **config.parameters)
