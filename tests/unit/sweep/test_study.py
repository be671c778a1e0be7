"""The book-keeping of a sweep: claims, budgets, failures, pruning, and trials that were left behind."""

import json
import time
from typing import Any

import pytest

from amidkd.sweep.goals import Goal
from amidkd.sweep.snapshot import best_of, write_snapshot
from amidkd.sweep.study import SweepStudy
from amidkd.sweep.trial import Pruned

NLL = [Goal("nll", "minimize")]


def result(nll: float | str, tokens: int = 100) -> dict[str, Any]:
    metrics = {"nll": {"value": nll, "errors": []}, "exact_match_greedy": {"value": 0.5, "errors": []}}
    return {"metrics": metrics, "seconds": 2.0, "tokens": tokens, "steps": 4, "runs": []}


def claimed(study: SweepStudy) -> Any:
    claim = study.claim()
    assert claim is not None
    return claim


def test_a_grid_is_tried_once_and_then_it_is_enough(sweep_config) -> None:
    study = SweepStudy(sweep_config(), NLL, time.time())
    for nll in (2.0, 1.0):
        study.complete(claimed(study), result(nll))
    assert not study.look()
    assert study.claim() is None
    assert study.stopped == "every combination has been tried"
    found = write_snapshot(study)
    assert [trial["params"] for trial in found["trials"]] == [{"objective.alpha": -1.0}, {"objective.alpha": 0.5}]
    assert found["best"] == [1]
    assert found["expected_trials"] == 2
    assert json.loads((study.folder / "sweep.json").read_text()) == found


def test_two_processes_never_have_the_same_trial(sweep_config) -> None:
    config = sweep_config()
    one, other = SweepStudy(config, NLL, time.time()), SweepStudy(config, NLL, time.time())
    first, second = claimed(one), claimed(other)
    assert first.number != second.number
    assert first.params != second.params
    assert other.claim() is None


@pytest.mark.parametrize(
    ("budget", "stopped"),
    [({"trials": 2}, "sweep.trials = 2"), ({"tokens": 150}, r"sweep.tokens = 150 \(200 used\)")],
)
def test_a_budget_counts_all_sessions(sweep_config, budget: dict[str, int], stopped: str) -> None:
    space = {"objective.alpha": [-3.0, -1.0, 0.0, 0.5, 1.0]}
    config = sweep_config(sweep={"space": space, **budget})
    for _ in range(2):
        # A session of its own each.
        study = SweepStudy(config, NLL, time.time())
        study.complete(claimed(study), result(1.0))
    study = SweepStudy(config, NLL, time.time())
    assert study.claim() is None
    assert study.stopped == stopped.replace("\\", "")


def test_hours_of_sessions_at_the_same_time_count_once(sweep_config) -> None:
    study = SweepStudy(sweep_config(sweep={"hours": 2.0}), NLL, time.time())
    study.optuna.set_user_attr("session a 1", [0.0, 3600.0])
    study.optuna.set_user_attr("session b 1", [1800.0, 5400.0])
    study.optuna.set_user_attr("session a 2", [10_000.0, 10_900.0])
    assert study.hours() == pytest.approx(1.75)
    study.optuna.set_user_attr("session a 3", [20_000.0, 20_900.0])
    assert study.claim() is None
    assert study.stopped == "sweep.hours = 2"


def test_a_failure_is_recorded_and_the_same_one_five_times_stops_the_sweep(sweep_config) -> None:
    config = sweep_config(
        sweep={"space": {"objective.alpha": {"low": -5.0, "high": 1.0}}, "sampler": "random", "trials": 50}
    )
    study = SweepStudy(config, NLL, time.time())
    for number in range(5):
        claim = claimed(study)
        try:
            raise ValueError(f"row {number} of /data/{number}.jsonl is odd\nand more")
        except ValueError as error:
            study.fail(claim, error, {"tokens": 7})
        assert "test_study.py" in (claim.folder / "error.txt").read_text()
    assert study.claim() is None
    assert study.failed_alike
    assert study.stopped.startswith("the same failure came 5 times: ValueError: row 4")
    trial = write_snapshot(study)["trials"][0]
    assert trial["state"] == "failed"
    assert trial["error"].startswith("ValueError: row 0 of /data/0.jsonl is odd")
    assert "(test_study.py, line" in trial["error"]
    assert trial["tokens"] == 7
    # Whoever starts it again has changed something: it is tried again.
    again = SweepStudy(config, NLL, time.time())
    assert again.claim() is not None


def test_different_failures_do_not_add_up(sweep_config) -> None:
    space = {"objective.alpha": {"low": -5.0, "high": 1.0}}
    study = SweepStudy(sweep_config(sweep={"space": space, "sampler": "random", "trials": 50}), NLL, time.time())
    for number in range(6):
        study.fail(claimed(study), ValueError("odd") if number % 2 else TypeError("odd"))
    assert study.claim() is not None


def test_a_metric_that_is_not_finite_is_a_failure(sweep_config) -> None:
    study = SweepStudy(sweep_config(), NLL, time.time())
    study.complete(claimed(study), result("inf"))
    trial = write_snapshot(study)["trials"][0]
    assert trial["state"] == "failed"
    assert trial["error"] == "ValueError: no finite objective: nll = inf"


def test_a_trial_whose_process_is_gone_is_taken_up_with_its_settings(sweep_config) -> None:
    config = sweep_config()
    claim = claimed(SweepStudy(config, NLL, time.time()))
    other = SweepStudy(config, NLL, time.time())
    assert claimed(other).number == 1, "its lock is held, so it is not left behind"
    claim.lock.release()
    taken = claimed(SweepStudy(config, NLL, time.time()))
    assert (taken.number, taken.params, taken.resumed) == (0, claim.params, True)


def test_a_kill_right_after_a_trial_is_made_neither_loses_nor_repeats_it(
    sweep_config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep_config()
    killed = SweepStudy(config, NLL, time.time())
    make = killed.optuna._storage.create_new_trial

    def make_and_die(*arguments: Any, **named: Any) -> None:
        make(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(killed.optuna._storage, "create_new_trial", make_and_die)
    with pytest.raises(KeyboardInterrupt):
        killed.claim()
    study = SweepStudy(config, NLL, time.time())
    claims = [claimed(study), claimed(study)]
    assert [(claim.number, claim.params) for claim in claims] == [
        (0, {"objective.alpha": -1.0}),
        (1, {"objective.alpha": 0.5}),
    ]
    assert study.claim() is None


def test_an_error_that_was_half_recorded_is_none_of_the_trial_that_goes_on(sweep_config) -> None:
    config = sweep_config(sweep={"same_failures": 1})
    killed = claimed(SweepStudy(config, NLL, time.time()))
    # The process is killed before the state follows.
    killed.trial.set_user_attr("error", {"type": "OSError", "message": "gone", "where": ""})
    killed.lock.release()
    study = SweepStudy(config, NLL, time.time())
    claim = claimed(study)
    assert (claim.number, claim.resumed) == (0, True)
    study.complete(claim, result(1.0))
    assert study.look(), "no failure that stops the sweep"
    assert write_snapshot(study)["trials"][0]["error"] is None


def test_a_trial_that_kills_its_process_again_and_again_is_given_up(sweep_config) -> None:
    config = sweep_config()
    for _ in range(3):
        claim = claimed(SweepStudy(config, NLL, time.time()))
        assert claim.number == 0
        claim.lock.release()
    study = SweepStudy(config, NLL, time.time())
    assert claimed(study).number == 1
    assert "died 3 times" in write_snapshot(study)["trials"][0]["error"]


def test_a_trial_that_gets_further_each_time_is_not_given_up(sweep_config) -> None:
    config = sweep_config()
    for step in range(6):
        claim = claimed(SweepStudy(config, NLL, time.time()))
        assert claim.number == 0
        (claim.folder / "seed-42" / f"checkpoint-{step}").mkdir(parents=True)
        claim.lock.release()


@pytest.mark.parametrize("goal", [Goal("nll", "minimize"), Goal("exact_match_greedy", "maximize")])
def test_a_trial_with_a_high_validation_loss_is_given_up_whatever_the_objective(sweep_config, goal: Goal) -> None:
    space = {"objective.alpha": {"low": -5.0, "high": 1.0}}
    pruner = {"kind": "median", "startup_trials": 2, "every": 1}
    config = sweep_config(sweep={"space": space, "sampler": "random", "trials": 9, "pruner": pruner})
    study = SweepStudy(config, [goal], time.time())
    for loss in (1.0, 2.0, 3.0):
        claim = claimed(study)
        assert not study.report(claim, 1, loss) or loss > 2.0
        study.complete(claim, result(loss))
    good, bad = claimed(study), claimed(study)
    assert not study.report(good, 1, 0.5)
    assert study.report(bad, 1, 5.0)
    study.prune(bad, Pruned(1), {"tokens": 3, "seconds": 1.0, "steps": 0})
    trial = write_snapshot(study)["trials"][4]
    assert (trial["state"], trial["steps"], trial["tokens"], trial["validation"]) == ("pruned", 1, 3, [[1, 5.0]])


def test_successive_halving_keeps_one_in_so_many(sweep_config) -> None:
    space = {"objective.alpha": {"low": -5.0, "high": 1.0}}
    pruner = {"kind": "successive_halving", "every": 2, "reduction_factor": 3}
    config = sweep_config(sweep={"space": space, "sampler": "random", "trials": 20, "pruner": pruner})
    study = SweepStudy(config, NLL, time.time())
    kept = []
    for place in range(9):
        claim = claimed(study)
        loss = 1.0 + (place * 4 % 9)
        if study.report(claim, 2, loss):
            study.prune(claim, Pruned(2), {})
        else:
            kept.append(loss)
            study.complete(claim, result(loss))
    assert 1.0 in kept
    assert 9.0 not in kept[2:]
    assert len(kept) < 7


def test_a_step_that_is_made_again_after_a_kill_is_not_told_again(sweep_config) -> None:
    config = sweep_config(sweep={"pruner": {"kind": "median", "every": 1}})
    study = SweepStudy(config, NLL, time.time())
    claim = claimed(study)
    study.report(claim, 1, 2.0)
    claim.lock.release()
    again = SweepStudy(config, NLL, time.time())
    taken = claimed(again)
    assert not again.report(taken, 1, 99.0)
    again.report(taken, 2, 1.5)
    assert write_snapshot(again)["trials"][0]["validation"] == [[1, 2.0], [2, 1.5]]


def test_the_front_has_what_no_other_trial_beats() -> None:
    goals = [Goal("nll", "minimize"), Goal("coverage", "maximize")]
    points = [(1.0, 0.5), (2.0, 0.9), (2.0, 0.4), (1.0, 0.5), (0.5, 0.1), (1.5, 0.5)]
    trials = [
        {"number": number, "state": "complete", "values": {"nll": nll, "coverage": coverage}}
        for number, (nll, coverage) in enumerate(points)
    ]
    by_hand = [
        number
        for number, (nll, coverage) in enumerate(points)
        if not any((a <= nll and b >= coverage and (a, b) != (nll, coverage)) for a, b in points)
    ]
    assert best_of(trials, goals) == by_hand == [0, 1, 3, 4]
    assert best_of([*trials, {"number": 6, "state": "failed", "values": {}}], goals[:1]) == [4]
