"""The sweep's trials as the storage has them: what is next, what came out, and when it is enough.

Any number of processes may work on one study. Each claims a trial under the sweep's lock, holds the trial's own lock
while it runs it, and so a trial whose process was killed is known by its free lock: the next to claim goes on with it.
"""

import json
import platform
import re
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidkd.config import PrunerConfig, RunConfig, SweepConfig
from amidkd.locks import Lock, hold, try_lock
from amidkd.record import write_atomic, write_json
from amidkd.sweep.goals import Goal
from amidkd.sweep.sampler import propose, suggest
from amidkd.sweep.storage import is_address, open_study
from amidkd.sweep.trial import Pruned

__all__ = ["Claim", "SweepStudy", "trial_folder"]

_DEATHS = 3
"""A trial whose process died so often without getting any further is a failure: it would die again."""
_LOCK = "sweep.lock"


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial goes.

    Args:
        folder: The sweep's folder.
        number: The trial's, from 0.
    """
    return folder / "trials" / f"{number:04d}"


@dataclass(frozen=True)
class Claim:
    """A trial that this process is to run.

    Args:
        trial: Optuna's.
        params: Value of each key.
        folder: Its folder.
        lock: Held until the trial is over.
        resumed: Whether another process had begun it.
    """

    trial: Any
    params: dict[str, Any]
    folder: Path
    lock: Lock
    resumed: bool

    @property
    def number(self) -> int:
        """The trial's number, from 0."""
        return int(self.trial.number)


class SweepStudy:
    """A sweep's trials, as this process works on them.

    Args:
        config: The sweep's run file.
        goals: Its objectives.
        session: When the session began, in seconds since 1970. A trial that failed in an earlier one may be tried
            again.

    Raises:
        SettingError: The storage cannot be used, or holds another sweep.
    """

    def __init__(self, config: RunConfig, goals: Sequence[Goal], session: float) -> None:
        assert config.sweep is not None
        self.config, self.goals, self.session = config, list(goals), session
        self.sweep: SweepConfig = config.sweep
        self.folder = Path(config.output.folder)
        self.stopped: str | None = None
        self.failed_alike = False
        directions = [goal.direction for goal in goals]
        with self.alone():
            self.optuna = open_study(config, directions, pruner=_pruner(config.sweep.pruner))

    def alone(self, waiting: Any = None) -> Any:
        """Hold the sweep's lock for a block: no other process on this machine claims, prepares or writes meanwhile."""
        return hold(self.folder / _LOCK, waiting=waiting)

    def trials(self) -> list[Any]:
        """All trials as Optuna holds them, by number."""
        return list(self.optuna.get_trials(deepcopy=False))

    # What is next

    def claim(self) -> Claim | None:
        """The next trial for this process, or None where there is none for it; ``stopped`` says why."""
        with self.alone():
            self._note_session()
            left_behind = self._left_behind()
            if left_behind is not None:
                return left_behind
            params = self._next()
            return None if params is None else self._begin(params)

    def look(self) -> bool:
        """Whether anything is left for this process, without beginning it; where nothing is, ``stopped`` says why."""
        with self.alone():
            self._note_session()
            more = self._next() is not None
            return more or any(self._is_left_behind(trial) for trial in self.trials())

    def _next(self) -> dict[str, Any] | None:
        counted = [trial for trial in self.trials() if self._counts(trial)]
        self.stopped = self._enough(counted)
        if self.stopped is not None:
            return None
        params = propose(self.sweep, counted, [goal.direction for goal in self.goals])
        self.stopped = "every combination has been tried" if params is None else None
        return params

    def _begin(self, params: dict[str, Any]) -> Claim:
        import optuna

        from amidkd.sweep.space import encoded

        chosen = optuna.trial.FixedTrial({key: encoded(value) for key, value in params.items()})
        found = suggest(chosen, self.sweep.space)
        template = optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params=chosen.params,
            distributions=chosen.distributions,
            user_attrs={"host": platform.node(), "began": time.time()},
        )
        # In one write: a trial that was queued and not yet asked for when the process was killed would be run twice,
        # and in a database one machine could ask for what another has queued.
        made = self.optuna._storage.create_new_trial(self.optuna._study_id, template_trial=template)
        trial = optuna.trial.Trial(self.optuna, made)
        folder = trial_folder(self.folder, trial.number)
        lock = try_lock(folder / "lock")
        assert lock is not None, "a new trial's folder is locked"
        write_json(folder / "trial.json", {"number": trial.number, "params": found})
        return Claim(trial, found, folder, lock, resumed=False)

    def _left_behind(self) -> Claim | None:
        """A trial whose process is gone, taken up where it was."""
        import optuna

        for frozen in self.trials():
            folder = trial_folder(self.folder, frozen.number)
            lock = try_lock(folder / "lock") if self._is_left_behind(frozen) else None
            if lock is None:
                continue
            trial = optuna.trial.Trial(self.optuna, frozen._trial_id)
            claim = Claim(trial, suggest(trial, self.sweep.space), folder, lock, resumed=True)
            if _deaths(folder) < _DEATHS:
                trial.set_user_attr("resumed", frozen.user_attrs.get("resumed", 0) + 1)
                write_json(folder / "trial.json", {"number": trial.number, "params": claim.params})
                return claim
            self.fail(claim, RuntimeError(f"its process died {_DEATHS} times at one place (killed, or out of memory)"))
        return None

    def _is_left_behind(self, trial: Any) -> bool:
        """Whether a trial is under way, as the storage has it, and no process of this machine runs it."""
        if trial.state.name != "RUNNING" or not self._is_here(trial):
            return False
        lock = try_lock(trial_folder(self.folder, trial.number) / "lock")
        if lock is not None:
            lock.release()
        return lock is not None

    def _is_here(self, trial: Any) -> bool:
        """Whether a trial's folder and lock are on this machine, not on another that shares the database."""
        return not is_address(self.sweep.storage) or trial.user_attrs.get("host") == platform.node()

    def _counts(self, trial: Any) -> bool:
        """Whether a trial counts: not one that failed in an earlier session, which may be tried again."""
        if trial.state.name != "FAIL":
            return trial.state.name != "WAITING"
        return trial.user_attrs.get("ended", 0.0) >= self.session

    def _enough(self, counted: Sequence[Any]) -> str | None:
        sweep = self.sweep
        alike = self._same_failure(counted)
        if alike is not None:
            self.failed_alike = True
            return alike
        if sweep.trials is not None and len(counted) >= sweep.trials:
            return f"sweep.trials = {sweep.trials}"
        if sweep.hours is not None and self.hours() >= sweep.hours:
            return f"sweep.hours = {sweep.hours:g}"
        if sweep.tokens is not None:
            used = sum(_result(trial).get("tokens", 0) for trial in self.trials())
            if used >= sweep.tokens:
                return f"sweep.tokens = {sweep.tokens:,} ({used:,} used)"
        return None

    def _same_failure(self, counted: Sequence[Any]) -> str | None:
        errors = [trial.user_attrs["error"] for trial in counted if trial.state.name == "FAIL"]
        kinds = Counter(_kind_of_error(error) for error in errors)
        for kind, number in kinds.most_common(1):
            if number >= self.sweep.same_failures:
                last = next(error for error in reversed(errors) if _kind_of_error(error) == kind)
                return f"the same failure came {number} times: {last['type']}: {last['message'].splitlines()[0]}"
        return None

    def hours(self) -> float:
        """Hours of all sessions; where several ran at once, the time is counted once."""
        spans = sorted(span for name, span in self.optuna.user_attrs.items() if name.startswith("session "))
        total, until = 0.0, 0.0
        for start, end in spans:
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total / 3600

    def _note_session(self) -> None:
        self.optuna.set_user_attr(f"session {platform.node()} {self.session:.3f}", [self.session, time.time()])

    # What came out

    def report(self, claim: Claim, step: int, loss: float) -> bool:
        """Keep a validation loss; True: the trial falls behind and is to be given up.

        Args:
            claim: The trial.
            step: Optimizer steps made.
            loss: Validation loss, nats a token.
        """
        if step in claim.trial.storage.get_trial(claim.trial._trial_id).intermediate_values:
            return False
        # Optuna's pruners know one direction, the objective's.
        claim.trial.report(loss if self.goals[0].direction == "minimize" else -loss, step)
        return bool(claim.trial.should_prune())

    def complete(self, claim: Claim, result: Mapping[str, Any], *, elapsed: float = 0.0) -> None:
        """Record what a trial gave.

        Args:
            claim: The trial.
            result: See :func:`~amidkd.sweep.trial.run_trial`.
            elapsed: Seconds that this process had it.
        """
        from math import isfinite

        values = [float(result["metrics"].get(goal.metric, {}).get("value", "nan")) for goal in self.goals]
        odd = [goal.metric for goal, value in zip(self.goals, values, strict=True) if not isfinite(value)]
        if odd:
            shown = ", ".join(f"{name} = {result['metrics'].get(name, {}).get('value', 'missing')}" for name in odd)
            error = _error(ValueError(f"no finite objective: {shown}"))
            self._end(claim, "FAIL", result=dict(result), error=error, elapsed=elapsed)
            return
        self._end(claim, "COMPLETE", values=values, result=dict(result), elapsed=elapsed)

    def prune(self, claim: Claim, outcome: Pruned, so_far: Mapping[str, Any], *, elapsed: float = 0.0) -> None:
        """Record that a trial was given up.

        Args:
            claim: The trial.
            outcome: When.
            so_far: ``seconds``, ``tokens`` and ``steps`` that it took.
            elapsed: Seconds that this process had it.
        """
        self._end(claim, "PRUNED", result={**so_far, "steps": outcome.step}, elapsed=elapsed)

    def fail(
        self, claim: Claim, error: BaseException, so_far: Mapping[str, Any] | None = None, *, elapsed: float = 0.0
    ) -> None:
        """Record that a trial failed, and the whole traceback in ``error.txt`` of its folder.

        Args:
            claim: The trial.
            error: What was raised.
            so_far: ``seconds``, ``tokens`` and ``steps`` that it took.
            elapsed: Seconds that this process had it.
        """
        write_atomic(claim.folder / "error.txt", "".join(traceback.format_exception(error)))
        self._end(claim, "FAIL", result=dict(so_far or {}), error=_error(error), elapsed=elapsed)

    def _end(self, claim: Claim, state: str, *, values: Sequence[float] | None = None, **attributes: Any) -> None:
        import optuna

        for name, value in {**attributes, "ended": time.time()}.items():
            claim.trial.set_user_attr(name, value)
        self.optuna.tell(claim.trial, values, state=optuna.trial.TrialState[state])
        claim.lock.release()

    def interrupted(self, claim: Claim) -> None:
        """Let go of a trial that is to go on later.

        Args:
            claim: The trial.
        """
        (claim.folder / "deaths.json").unlink(missing_ok=True)
        claim.lock.release()


def _pruner(settings: PrunerConfig) -> Any:
    import optuna

    if settings.kind == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_steps
        )
    if settings.kind == "successive_halving":
        first = max(settings.every, settings.warmup_steps)
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=first, reduction_factor=settings.reduction_factor, min_early_stopping_rate=0
        )
    return optuna.pruners.NopPruner()


def _deaths(folder: Path) -> int:
    """How often the processes of a trial have died in a row without getting any further, this time included."""
    file = folder / "deaths.json"
    got = sorted(
        f"{path.parent.name}/{path.name}"
        for name in ("checkpoint-*", "student")
        for path in folder.glob(f"seed-*/{name}")
    )
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    deaths = 1 + (before["deaths"] if before.get("got") == got else 0)
    write_json(file, {"deaths": deaths, "got": got})
    return deaths


def _result(trial: Any) -> dict[str, Any]:
    found: dict[str, Any] = trial.user_attrs.get("result", {})
    return found


def _error(error: BaseException) -> dict[str, str]:
    """Type, message and the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return {"type": type(error).__name__, "message": str(error) or type(error).__name__, "where": where}


def _kind_of_error(error: Mapping[str, str]) -> str:
    """Errors that differ in numbers, paths and values alone are the same."""
    first = error["message"].splitlines()[0]
    return f"{error['type']} {error['where']} " + re.sub(r"(/\S+|-?\d[\d.e+-]*)", "#", first)
