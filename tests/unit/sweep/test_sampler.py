"""Which settings come next: reproducible, in the space, never twice."""

import math
from typing import Any

import optuna
import pytest

from amidkd.config import SweepConfig
from amidkd.sweep.sampler import decoded_params, propose, suggest
from amidkd.sweep.space import combinations, encoded

RANGES = {
    "training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "objective.alpha": {"low": -5.0, "high": 1.0},
    "training.per_device_train_batch_size": {"low": 4, "high": 16},
    "objective.lam": {"low": 0.1, "high": 0.5, "step": 0.1},
}


def run(sweep: SweepConfig, count: int, value: Any = lambda params: 0.0) -> list[dict[str, Any]]:
    """Settings of ``count`` trials, each told before the next."""
    study = optuna.create_study(directions=["minimize"])
    found = []
    for _ in range(count):
        params = propose(sweep, study.get_trials(), ["minimize"])
        if params is None:
            break
        study.enqueue_trial({key: encoded(each) for key, each in params.items()})
        trial = study.ask()
        assert suggest(trial, sweep.space) == params, "what was proposed is what the trial has"
        study.tell(trial, value(params))
        found.append(params)
    return found


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc"])
def test_values_are_in_their_ranges_and_the_same_for_the_same_seed(kind: str) -> None:
    sweep = SweepConfig.model_validate(
        {"space": RANGES, "sampler": {"kind": kind, "seed": 3, "startup_trials": 3}, "trials": 10}
    )
    first = run(sweep, 8)
    assert first == run(sweep, 8)
    assert len({repr(params) for params in first}) == 8
    for params in first:
        assert 1e-4 <= params["training.learning_rate"] <= 1e-1
        assert -5 <= params["objective.alpha"] <= 1
        assert isinstance(params["training.per_device_train_batch_size"], int)
        assert params["objective.lam"] in (0.1, 0.2, 0.3, 0.4, 0.5)
    other = SweepConfig.model_validate({"space": RANGES, "sampler": {"kind": kind, "seed": 4}, "trials": 10})
    assert run(other, 8) != first


@pytest.mark.parametrize("kind", ["grid", "tpe", "random", "qmc"])
def test_a_finite_space_is_tried_whole_and_no_combination_twice(kind: str) -> None:
    space = {
        "objective.between": ["teacher||assistant", "teacher||student"],
        "objective.alpha": {"choices": [-1, 0, 1], "when": {"objective.between": "teacher||assistant"}},
        "objective.divergence": ["kl", {"name": "alpha_beta", "a": 0.2, "b": 0.7}],
    }
    sweep = SweepConfig.model_validate({"space": space, "sampler": kind, "trials": 50})
    found = run(sweep, 50)
    assert len(found) == 8
    assert sorted(map(repr, map(sorted_items, found))) == sorted(
        map(repr, map(sorted_items, combinations(sweep.space)))
    )


@pytest.mark.parametrize("kind", ["grid", "tpe", "random"])
def test_a_space_of_many_combinations_is_never_listed_whole(kind: str) -> None:
    space = {f"training.{name}": list(range(10)) for name in "abcdefghij"}
    sweep = SweepConfig.model_validate({"space": space, "sampler": kind, "trials": 2})
    assert next(combinations(sweep.space)) == dict.fromkeys(space, 0)
    first, second = run(sweep, 2)
    assert first != second


def sorted_items(params: dict[str, Any]) -> list[Any]:
    return sorted(params.items())


def test_tpe_comes_nearer_to_the_optimum_than_chance() -> None:
    space = {"objective.alpha": {"low": -5.0, "high": 1.0}, "objective.lam": {"low": 0.0, "high": 1.0}}

    def loss(params: dict[str, Any]) -> float:
        return (params["objective.alpha"] + 1.3) ** 2 + 4 * (params["objective.lam"] - 0.2) ** 2

    best = {}
    for kind in ("tpe", "random"):
        found = []
        for seed in range(3):
            sampler = {"kind": kind, "seed": seed, "startup_trials": 8}
            sweep = SweepConfig.model_validate({"space": space, "sampler": sampler, "trials": 40})
            found.append(min(map(loss, run(sweep, 30, loss))))
        best[kind] = sum(found) / len(found)
    assert best["tpe"] < best["random"]


def test_sobol_points_fill_each_range_evenly() -> None:
    space = {
        "objective.alpha": {"low": 0.0, "high": 1.0},
        "training.learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    }
    sweep = SweepConfig.model_validate({"space": space, "sampler": "qmc", "trials": 16})
    found = run(sweep, 16)
    # Sixteen points of a (0, 2)-sequence: one in each sixteenth of each axis.
    assert sorted(int(16 * params["objective.alpha"]) for params in found) == list(range(16))
    places = [(math.log10(params["training.learning_rate"]) + 4) / 4 for params in found]
    assert sorted(int(16 * place) for place in places) == list(range(16))


def test_what_the_storage_holds_is_shown_as_the_run_file_has_it() -> None:
    section = {"name": "alpha_beta", "a": 0.2, "b": 0.7}
    sweep = SweepConfig.model_validate({"space": {"objective.divergence": ["kl", section]}, "sampler": "grid"})
    assert decoded_params(sweep.space, {"objective.divergence": encoded(section)}) == {"objective.divergence": section}
