"""One trial: numbers of a run made by hand, means over seeds, the validation loss, giving up."""

import statistics
from pathlib import Path

import pytest
import yaml

from amidkd.config import dump_yaml, parse
from amidkd.evaluation import evaluate_run
from amidkd.record import RunFolder
from amidkd.sweep.trial import Pruned, Shared, run_trial, trial_config
from amidkd.training import distill

PARAMS = {"objective.alpha": 0.5}


def test_a_trial_is_the_run_that_one_would_make_by_hand_for_each_seed(sweep_tree, tmp_path: Path) -> None:
    tree = yaml.safe_load(dump_yaml(parse(sweep_tree())))
    sweep = tmp_path / "sweep"
    found = run_trial(tree, PARAMS, seeds=[1, 2], folder=sweep / "trials" / "0003")
    values = []
    for seed in (1, 2):
        config = parse(
            sweep_tree(objective={"alpha": 0.5}, training={"seed": seed}, sweep=None, output=str(tmp_path / f"{seed}"))
        )
        values.append(evaluate_run(config, distill(config))["student"]["metrics"]["nll"]["value"])
    assert values[0] != values[1], "the order of the rows differs"
    entry = found["metrics"]["nll"]
    assert entry["value"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    errors = {error["over"]: error for error in entry["errors"]}
    assert errors["training seeds"] == {
        "over": "training seeds",
        "stderr": pytest.approx(abs(values[0] - values[1]) / 2),
        "n": 2,
    }
    assert errors["prompts"]["n"] == 4
    assert found["steps"] == 8
    assert found["tokens"] == sum(
        RunFolder(sweep / run["folder"]).record()["stages"]["distill"]["tokens"] for run in found["runs"]
    )
    assert [run["folder"] for run in found["runs"]] == ["trials/0003/seed-1", "trials/0003/seed-2"]
    assert not list(sweep.rglob("checkpoint-*")), "what only a resume needs is gone"


def test_a_trial_that_is_done_is_not_run_again(sweep_config, tmp_path: Path) -> None:
    tree = yaml.safe_load(dump_yaml(sweep_config()))
    folder = tmp_path / "sweep" / "trials" / "0000"
    first = run_trial(tree, PARAMS, seeds=[1], folder=folder)
    record = folder / "seed-1" / "record.json"
    before = record.stat().st_mtime_ns
    assert run_trial(tree, PARAMS, seeds=[1], folder=folder) == first
    assert record.stat().st_mtime_ns == before


def test_watching_the_validation_loss_changes_nothing_and_may_give_a_trial_up(sweep_tree, tmp_path: Path) -> None:
    pruner = {"kind": "median", "every": 1, "rows": 4}
    constant = {"lr_scheduler_type": "constant", "warmup_steps": 0}
    given = sweep_tree(sweep={"pruner": pruner}, training=constant)
    tree = yaml.safe_load(dump_yaml(parse(given)))
    told: dict[int, float] = {}

    def watch(step: int, loss: float) -> bool:
        told[step] = loss
        return False

    watched = run_trial(tree, PARAMS, seeds=[1], folder=tmp_path / "a" / "trials" / "0000", report=watch)
    alone = run_trial(tree, PARAMS, seeds=[1], folder=tmp_path / "b" / "trials" / "0000")
    assert watched["metrics"]["nll"] == alone["metrics"]["nll"]
    assert list(told) == [1, 2, 3], "the last step is left to the evaluation"

    # A run that ends at step 2, by the evaluation's own NLL on the same rows.
    short = {**given, "training": {**given["training"], "max_steps": 2}}
    shorter = run_trial(
        yaml.safe_load(dump_yaml(parse(short))), PARAMS, seeds=[1], folder=tmp_path / "d" / "trials" / "0000"
    )
    assert told[2] == pytest.approx(shorter["metrics"]["nll"]["value"], rel=1e-5)

    with pytest.raises(Pruned) as outcome:
        run_trial(
            tree, PARAMS, seeds=[1, 2], folder=tmp_path / "c" / "trials" / "0000", report=lambda step, _: step == 2
        )
    assert outcome.value.step == 2
    assert not (tmp_path / "c" / "trials" / "0000" / "seed-2").exists()


def test_a_warm_start_is_made_once_for_each_seed_and_all_trials_begin_there(sweep_tree, tmp_path: Path) -> None:
    shape = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 64}
    student = {"kind": "from_scratch", "config": shape, "warm_start": {"max_steps": 2}}
    given = sweep_tree()
    tree = yaml.safe_load(dump_yaml(parse({**given, "student": student})))
    sweep = tmp_path / "sweep"
    shared = Shared(start=sweep / "shared")
    found = [
        run_trial(tree, {"objective.alpha": alpha}, seeds=[1], folder=sweep / "trials" / f"000{place}", shared=shared)
        for place, alpha in enumerate((-1.0, 0.5))
    ]
    assert [entry["steps"] for entry in found] == [6, 4], "the warm start is the first trial's expense"
    records = [RunFolder(sweep / entry["runs"][0]["folder"]).record() for entry in found]
    assert [record["stages"]["warm_start"]["reused"] for record in records] == [False, True]
    own = run_trial(tree, {"objective.alpha": 0.5}, seeds=[1], folder=tmp_path / "own" / "trials" / "0000")
    assert own["metrics"]["nll"] == found[1]["metrics"]["nll"], "the same as with a warm start of its own"


def test_the_settings_of_a_run_say_where_it_goes_and_that_it_goes_on(sweep_config, tmp_path: Path) -> None:
    tree = yaml.safe_load(dump_yaml(sweep_config(evaluation={"after_training": True})))
    config = trial_config(tree, PARAMS, seed=7, folder=tmp_path / "trials" / "0001")
    assert config.output.folder == str(tmp_path / "trials" / "0001" / "seed-7")
    assert config.training.seed == 7
    assert config.training.resume_from_checkpoint is True
    assert config.evaluation.after_training is False
    assert config.sweep is None
    assert config.objective.alpha == 0.5
