"""How much of what a sweep saw each key explains: fANOVA (Hutter, Hoos & Leyton-Brown, ICML 2014) by Optuna."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from amidkd.report.sweep.record import Objective, Sweep, Trial, is_number, key_text, metric_called, value_text

__all__ = ["Importance", "importance_of"]

_FEWEST = 8


@dataclass(frozen=True)
class Importance:
    """What can be said about the keys in one objective.

    Args:
        metric: The objective's metric.
        shares: Share of the spread over all complete trials that a key explains alone, in [0, 1], the largest first.
        notes: What cannot be said, or holds for some trials only.
    """

    metric: str
    shares: dict[str, float]
    notes: tuple[str, ...]


def importance_of(sweep: Sweep, objective: Objective) -> Importance:
    """Measure the keys, or say why they cannot be measured.

    A forest is fitted to the trials; a key's share is the variance of its marginal over that of the forest. A key that
    only some trials have is measured among those.

    Args:
        sweep: The sweep.
        objective: The metric whose spread is explained.
    """
    trials, name = sweep.complete(), objective.metric
    moving = [key for key in sweep.varied() if len(sweep.values_of(key, trials)) > 1]
    if len(moving) < 2:
        what = f"only {key_text(moving[0])} varies" if moving else "no key varies"
        return Importance(name, {}, (f"Importances compare keys; {what} among the complete trials.",))
    if len(trials) < _FEWEST:
        few = f"Importances need at least {_FEWEST} complete trials; there are {len(trials)}."
        return Importance(name, {}, (few,))
    if len({trial.values.get(name, 0.0) for trial in trials}) == 1:
        return Importance(
            name, {}, (f"Every trial has the same {metric_called(name).label}: no key explains anything.",)
        )
    absent = [package for package in ("optuna", "sklearn") if find_spec(package) is None]
    if absent:
        missing = f"Importances need {' and '.join(absent)}: pip install 'amidkd[sweep]', then write this page again."
        return Importance(name, {}, (missing,))
    always = [key for key in moving if all(key in trial.params for trial in trials)]
    shares = _shares(sweep, trials, always, name) if len(always) > 1 else {}
    notes = []
    for key in (key for key in moving if key not in always):
        having = [trial for trial in trials if key in trial.params]
        others = [k for k in moving if all(k in t.params for t in having) and len(sweep.values_of(k, having)) > 1]
        if len(having) < _FEWEST or len(others) < 2:
            notes.append(f"{key_text(key)}: {len(having)} complete trials have it, too few to say.")
            continue
        shares[key] = _shares(sweep, having, others, name)[key]
        notes.append(f"{key_text(key)}: among the {len(having)} of {len(trials)} trials that have it.")
    if len(always) == 1:
        notes.append(f"{key_text(always[0])}: the only key that every trial has, so it is compared with none.")
    return Importance(name, dict(sorted(shares.items(), key=lambda item: -item[1])), tuple(notes))


def _shares(sweep: Sweep, trials: Sequence[Trial], keys: Sequence[str], metric: str) -> dict[str, float]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        scales = {key: _Scale(sweep, key, trials) for key in keys}
        for trial in trials:
            found = trial.estimate(metric)
            assert found is not None
            study.add_trial(
                optuna.trial.create_trial(
                    params={key: scale.place(trial.params[key]) for key, scale in scales.items()},
                    distributions={key: scale.distribution for key, scale in scales.items()},
                    value=found.value,
                )
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found_shares = get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(n_trees=32, seed=0), normalize=False
            )
    finally:
        optuna.logging.set_verbosity(level)
    return {key: min(1.0, float(found_shares[key])) for key in keys}


class _Scale:
    """A key as Optuna takes it: ranges as they are, choices of numbers by their rank, so that they keep their order."""

    def __init__(self, sweep: Sweep, key: str, trials: Sequence[Trial]) -> None:
        import optuna

        values, entry = sweep.values_of(key, trials), sweep.space[key]
        self._ranks: dict[str, int] = {}
        self.distribution: Any
        if "choices" not in entry and all(map(is_number, values)):
            low, high, log = (
                float(min(entry["low"], *values)),
                float(max(entry["high"], *values)),
                bool(entry.get("log")),
            )
            self.distribution = optuna.distributions.FloatDistribution(low, high, log=log)
            return
        self._ranks = {value_text(value): rank for rank, value in enumerate(values)}
        if all(map(is_number, values)):
            self.distribution = optuna.distributions.IntDistribution(0, len(values) - 1)
        else:
            self.distribution = optuna.distributions.CategoricalDistribution(list(range(len(values))))

    def place(self, value: Any) -> Any:
        return self._ranks[value_text(value)] if self._ranks else float(value)
