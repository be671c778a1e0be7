"""Which settings the next trial gets, never the same ones twice.

The choice depends on the seed and on the trials that are there, not on the process: a sweep that was killed and
resumed tries what it would have tried.
"""

import itertools
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amidkd.config import Choices, Range, SweepConfig
from amidkd.sweep.space import Space, applies, combinations, decoded, encoded, in_order, is_finite, values_of

__all__ = ["decoded_params", "propose", "suggest"]

_ATTEMPTS = 64
_MOST_LEFT = 10_000
"""Of the combinations that are left, so many are looked at."""


def propose(sweep: SweepConfig, trials: Sequence[Any], directions: Sequence[str]) -> dict[str, Any] | None:
    """The settings of the next trial, or None where every combination has been tried.

    Args:
        sweep: The sweep's settings.
        trials: The trials that count, as Optuna holds them: finished, or running elsewhere.
        directions: ``minimize`` or ``maximize``, one for each objective.
    """
    space: Space = sweep.space
    tried = {_key(decoded_params(space, trial.params)) for trial in trials}
    left: Iterator[dict[str, Any]] = iter(())
    first = None
    if is_finite(space):
        left = (params for params in combinations(space) if _key(params) not in tried)
        first = next(left, None)
        if first is None or sweep.sampler.kind == "grid":
            return first
    for attempt in range(_ATTEMPTS):
        params = _drawn(sweep, space, trials, directions, attempt)
        if _key(params) not in tried:
            return params
    if first is None:
        return None
    return random.Random(f"{sweep.sampler.seed}|{len(trials)}").choice([first, *itertools.islice(left, _MOST_LEFT)])


def _drawn(
    sweep: SweepConfig, space: Space, trials: Sequence[Any], directions: Sequence[str], attempt: int
) -> dict[str, Any]:
    seed = random.Random(f"{sweep.sampler.seed}|{len(trials)}|{attempt}").getrandbits(31)
    if sweep.sampler.kind == "tpe":
        return _tpe(sweep, space, trials, directions, seed)
    if sweep.sampler.kind == "qmc":
        return _placed(space, _sobol(len(space), sweep.sampler.seed, len(trials) + attempt))
    draw = random.Random(seed)
    return _placed(space, [draw.random() for _ in space])


def _tpe(
    sweep: SweepConfig, space: Space, trials: Sequence[Any], directions: Sequence[str], seed: int
) -> dict[str, Any]:
    """What Optuna's tree-structured Parzen estimator makes of the trials so far."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=sweep.sampler.startup_trials,
            seed=seed,
            multivariate=True,
            group=any(entry.when for entry in space.values()),
            # What runs elsewhere is not tried again next to it.
            constant_liar=True,
        )
        study = optuna.create_study(sampler=sampler, directions=list(directions))
        study.add_trials(trials)
        return suggest(study.ask(), space)


def suggest(trial: Any, space: Space) -> dict[str, Any]:
    """Ask a trial for the value of each key that applies.

    Args:
        trial: Optuna's trial.
        space: What is varied.
    """
    params: dict[str, Any] = {}
    for key in in_order(space):
        entry = space[key]
        if applies(entry, params):
            params[key] = _tidy(entry, decoded(entry, _suggested(trial, key, entry)))
    return params


def _suggested(trial: Any, key: str, entry: Range | Choices) -> Any:
    if isinstance(entry, Choices):
        return trial.suggest_categorical(key, [encoded(choice) for choice in entry.choices])
    high = entry.high if entry.step is None else values_of(entry)[-1]
    if _is_whole(entry):
        return trial.suggest_int(key, int(entry.low), int(high), step=int(entry.step or 1), log=entry.log)
    step = None if entry.step is None else float(entry.step)
    return trial.suggest_float(key, float(entry.low), float(high), step=step, log=entry.log)


def _is_whole(entry: Range) -> bool:
    return all(isinstance(value, int) for value in (entry.low, entry.high, 1 if entry.step is None else entry.step))


def _tidy(entry: Range | Choices, value: Any) -> Any:
    """A value on a grid of decimals as it is written."""
    stepped = isinstance(entry, Range) and entry.step is not None and isinstance(value, float)
    return round(value, 12) if stepped else value


def decoded_params(space: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a trial as the run file has them.

    Args:
        space: What is varied.
        params: As the storage holds them.
    """
    return {key: _tidy(space[key], decoded(space[key], value)) for key, value in params.items() if key in space}


def _key(params: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset((key, repr(encoded(value))) for key, value in params.items())


def _placed(space: Space, point: Sequence[float]) -> dict[str, Any]:
    """The settings at a point of the unit cube, a coordinate for each key; those of idle keys are not used."""
    params: dict[str, Any] = {}
    for key, place in zip(in_order(space), point, strict=True):
        if applies(space[key], params):
            params[key] = _at(space[key], min(max(place, 0.0), 1 - 2**-40))
    return params


def _at(entry: Range | Choices, place: float) -> Any:
    if isinstance(entry, Choices) or entry.step is not None:
        values = values_of(entry)
        return values[int(place * len(values))]
    low, high = (math.log(entry.low), math.log(entry.high)) if entry.log else (entry.low, entry.high)
    if _is_whole(entry):
        if entry.log:
            return min(int(entry.high), max(int(entry.low), round(math.exp(low + place * (high - low)))))
        return int(entry.low) + int(place * (entry.high - entry.low + 1))
    value = low + place * (high - low)
    return math.exp(value) if entry.log else value


def _sobol(dimensions: int, seed: int, place: int) -> list[float]:
    """A point of a scrambled Sobol sequence.

    Source: torch.quasirandom.SobolEngine.
    """
    import torch

    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
    engine.fast_forward(place)
    return [float(value) for value in engine.draw(1, dtype=torch.float64)[0]]
