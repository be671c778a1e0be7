"""Trials on a Ray cluster: Ray Tune places and runs them; what is tried, and what came of it, is the study's.

So a sweep has the same space, samplers, pruner, storage and failure rules with Ray and without it, and may go on with
the one after the other. The sweep's folder has to be at the same path on every node.
"""

import errno
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amidkd.config.sweep import RayConfig
from amidkd.errors import SettingError
from amidkd.sweep.snapshot import write_snapshot
from amidkd.sweep.study import Claim, SweepStudy
from amidkd.sweep.trial import Pruned, Shared, run_trial
from amidkd.sweep.work import so_far, tidy

__all__ = ["require_ray", "work_on_ray"]

_RESTARTS = 2
"""How often a trial whose worker died goes on from its checkpoint."""
_PATIENCE = 10.0
_OBJECT_STORE = 100 * 1024**2
_FULL = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger("amidkd")


def require_ray(settings: RayConfig) -> None:
    """Refuse to start without Ray Tune, or where nothing answers at the cluster's address.

    Args:
        settings: ``sweep.ray``.

    Raises:
        SettingError: Naming the extra, or the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingError('sweep.ray needs Ray Tune, which is not installed: pip install "amidkd[ray]"')
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", settings.address or "")
    if found is None:
        return
    # Ray itself tries for minutes.
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(settings, str(error)) from None


def _unreachable(settings: RayConfig, reason: str) -> SettingError:
    return SettingError(
        f"sweep.ray.address: no Ray cluster at {settings.address or 'this machine'}: {reason.strip('. ')}. Start one "
        "(ray start --head), or leave `address` out for one on this machine"
    )


def work_on_ray(study: SweepStudy, tree: Mapping[str, Any], shared: Shared) -> None:
    """Run trials on a cluster until there are none left.

    Args:
        study: The sweep.
        tree: Its run file, resolved.
        shared: What the trials have in common.

    Raises:
        SettingError: The cluster cannot be reached, or has no room for one trial.
        KeyboardInterrupt: The trials that were under way can go on.
        OSError: The disk is full: no trial's fault.
    """
    settings = study.sweep.ray
    assert settings is not None
    require_ray(settings)
    with _cluster(settings) as resources:
        room = _room(settings, resources, study.sweep.workers)
        trials = _Trials(study, room)
        try:
            _tune(trials, settings, tree, shared)
        finally:
            trials.let_go()
    if trials.full is not None:
        raise trials.full
    write_snapshot(study)


class _Trials:
    """The trials that Tune has at the moment, by Tune's name of each.

    Args:
        study: The sweep.
        room: How many may run at a time.
    """

    def __init__(self, study: SweepStudy, room: int) -> None:
        self.study, self.room = study, room
        self.claims: dict[str, tuple[Claim, float]] = {}
        self.full: OSError | None = None
        self.over = False

    def next(self, name: str) -> dict[str, Any] | None:
        """What the next trial is to do; None: not now, or (``over``) never."""
        if self.over or len(self.claims) >= self.room:
            return None
        claim = self.study.claim()
        if claim is None:
            self.over = True
            return None
        self.claims[name] = (claim, time.monotonic())
        write_snapshot(self.study)
        return {"number": claim.number, "task": json.dumps({"params": claim.params, "folder": str(claim.folder)})}

    def told(self, name: str, result: Mapping[str, Any]) -> bool:
        """Note what a trial said; True: it is to stop."""
        if name not in self.claims:
            return True
        claim, began = self.claims[name]
        if result.get("outcome") is not None:
            self._end(name, json.loads(result["outcome"]))
        elif result.get("step") is not None and self.study.report(claim, result["step"], result["validation_loss"]):
            del self.claims[name]
            outcome = Pruned(result["step"])
            self.study.prune(claim, outcome, so_far(self.study, claim), elapsed=_since(began))
            self._written()
            return True
        return False

    def ended(self, name: str) -> None:
        """Note that Tune is done with a trial; one that said nothing of its end has died."""
        if name not in self.claims:
            return
        claim, began = self.claims.pop(name)
        died = RuntimeError(f"its Ray worker died {_RESTARTS + 1} times (killed, or out of memory)")
        self.study.fail(claim, died, so_far(self.study, claim), elapsed=_since(began))
        self._written()

    def _end(self, name: str, outcome: Mapping[str, Any]) -> None:
        claim, began = self.claims.pop(name)
        elapsed = _since(began)
        if "result" in outcome:
            self.study.complete(claim, outcome["result"], elapsed=elapsed)
        elif "full" in outcome:
            self.full, self.over = OSError(*outcome["full"]), True
            self.study.interrupted(claim)
            return
        else:
            self.study.fail(claim, _rebuilt(outcome["error"]), so_far(self.study, claim), elapsed=elapsed)
        self._written()

    def _written(self) -> None:
        tidy(self.study, write_snapshot(self.study))

    def let_go(self) -> None:
        """Leave what is under way to a later session."""
        for claim, _ in self.claims.values():
            self.study.interrupted(claim)
        self.claims.clear()


def _since(began: float) -> float:
    return round(time.monotonic() - began, 3)


def _tune(trials: _Trials, settings: RayConfig, tree: Mapping[str, Any], shared: Shared) -> None:
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher

    class Study(Searcher):
        """Asks the study what is next."""

        def suggest(self, trial_id: str) -> Any:
            task = trials.next(trial_id)
            return Searcher.FINISHED if task is None and trials.over else task

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            trials.ended(trial_id)

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the study is saved as it is told."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing."""

    class Told(FIFOScheduler):
        """Tells the study what a trial says, and stops the one that falls behind."""

        def on_trial_result(self, controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
            return str(TrialScheduler.STOP if trials.told(trial.trial_id, result) else TrialScheduler.CONTINUE)

    place = trials.study.folder / "ray"
    pruned = trials.study.sweep.pruner.kind != "none"
    constants = {"tree": dict(tree), "seeds": trials.study.sweep.seeds, "shared": shared, "pruned": pruned}
    with _quiet():
        try:
            tune.run(
                tune.with_parameters(_remote, **constants),
                name="tune",
                search_alg=Study(),
                scheduler=Told(),
                num_samples=-1,
                resources_per_trial={"cpu": settings.cpus, "gpu": settings.gpus},
                storage_path=str(place),
                trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}-{trial.trial_id}",
                max_failures=_RESTARTS,
                raise_on_failed_trial=False,
                verbose=0,
            )
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _remote(
    config: Mapping[str, Any], *, tree: Mapping[str, Any], seeds: list[int], shared: Shared, pruned: bool
) -> None:
    """One trial, in a worker of the cluster: what comes of it is its last report."""
    from ray import tune

    task = json.loads(config["task"])

    def report(step: int, loss: float) -> bool:
        # The driver ends this process where the trial falls behind.
        tune.report({"step": step, "validation_loss": loss})
        return False

    outcome: dict[str, Any]
    try:
        folder = Path(task["folder"])
        given: Callable[[int, float], bool] | None = report if pruned else None
        outcome = {"result": run_trial(tree, task["params"], seeds=seeds, folder=folder, shared=shared, report=given)}
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            outcome = {"full": [error.errno, error.strerror]}
        else:
            text = "".join(traceback.format_exception(error))
            kind = {"type": type(error).__name__, "module": type(error).__module__}
            outcome = {"error": {**kind, "message": str(error), "traceback": text}}
    tune.report({"outcome": json.dumps(outcome)})


class _RemoteTraceback(Exception):  # noqa: N818 - stands for another's traceback
    """Shown as the cause of an error that was raised on another machine."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _rebuilt(entry: Mapping[str, str]) -> Exception:
    """An error of a worker, by its type's name, as this process can record it."""
    error: Exception = type(entry["type"], (Exception,), {"__module__": entry["module"]})(entry["message"])
    error.__cause__ = _RemoteTraceback(entry["traceback"])
    return error


@contextmanager
def _cluster(settings: RayConfig) -> Iterator[dict[str, float]]:
    """Connect to the cluster, or start one on this machine; give its resources."""
    # Said by no one: where the cluster is, what runs on it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # The sweep has a table of its own.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # An interrupt is for the sweep to handle.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    import ray

    ours = not ray.is_initialized()
    try:
        if ours:
            common = {"log_to_driver": False, "logging_level": logging.ERROR}
            if settings.address is None:
                ray.init(include_dashboard=False, object_store_memory=_OBJECT_STORE, **common)
            else:
                ray.init(address=settings.address, **common)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise _unreachable(settings, str(error).strip().splitlines()[0]) from None
    try:
        yield dict(ray.cluster_resources())
    finally:
        if ours:
            ray.shutdown()


def _room(settings: RayConfig, resources: Mapping[str, float], workers: int) -> int:
    """How many trials run at a time: ``sweep.workers`` where it is above 1, else as many as there is room for."""
    wanted = {"CPU": ("cpus", settings.cpus), "GPU": ("gpus", settings.gpus)}
    fits = math.inf
    for resource, (name, needed) in wanted.items():
        there = resources.get(resource, 0.0)
        if needed == 0:
            continue
        if there < needed and settings.address is None:
            raise SettingError(
                f"sweep.ray.{name}: a trial asks for {needed:g}, and this machine has {there:g}; lower it, or name a "
                "cluster in sweep.ray.address"
            )
        fits = min(fits, there // needed)
    if fits < 1:
        _log.warning("warning: the cluster has no room for a trial yet; waiting for nodes that have")
    return workers if workers > 1 else max(1, int(fits))


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray's own messages are about Ray's own files; what concerns the sweep is in its record."""
    loggers = [logging.getLogger(name) for name in ("ray", "ray.tune", "ray.data", "ray.train")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
