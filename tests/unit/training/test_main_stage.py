"""Policies and objectives that do not go together are refused before anything is loaded."""

import json
import warnings

import pytest

from amidkd.config import load, parse
from amidkd.errors import SettingError, SettingWarning
from amidkd.training import distill, sft
from amidkd.training.main_stage import check_policy, main_loss

WRITING = ["on_policy", "mixed", "adaptive", "contrastive"]


def run(**sections) -> object:
    base = {"student": "s", "teacher": "t", "data": {"train": "d.jsonl"}, "output": "o"}
    return parse({**base, **sections})


@pytest.mark.parametrize("policy", WRITING)
def test_cross_entropy_on_ones_own_text_is_refused(policy) -> None:
    with pytest.raises(
        SettingError, match=rf"policy.kind: {policy} has the student learn from its own text.*amidkd dist"
    ):
        check_policy(run(policy=policy), "sft")


@pytest.mark.parametrize("by", ["teacher_entropy", "disagreement"])
def test_weights_that_need_a_teacher(by) -> None:
    config = run(objective={"weighting": {"by": by}})
    check_policy(config, "distill")
    with pytest.raises(SettingError, match=rf"objective.weighting.by: {by} needs the teacher.*use student_entropy"):
        check_policy(config, "sft")


def test_the_validation_loss_needs_rows() -> None:
    with pytest.raises(
        SettingError, match=r"policy.kind: adaptive watches the validation loss; name rows in data.valid"
    ):
        check_policy(run(policy="adaptive"), "distill")
    check_policy(run(policy="adaptive", data={"train": "d.jsonl", "validation_rows": 3}), "distill")


@pytest.mark.parametrize(
    "objective",
    [
        {"alpha": -0.5},
        {"between": "teacher||student"},
        {"alpha": -1, "lam": {"kind": "linear", "start": 0.1, "end": 0.2}},
        {"student_text": {"between": "student||teacher"}},
        {"terms": [{"weight": 1, "alpha": -1}]},
    ],
)
def test_adaptive_skew_needs_skewed_divergences(objective) -> None:
    config = run(policy={"kind": "contrastive", "adaptive_skew": True}, objective=objective)
    with pytest.raises(SettingError, match=r"policy.adaptive_skew needs objective(.student_text)? to be one skewed"):
        check_policy(config, "distill")


def test_what_contrastive_fills_in() -> None:
    config = run(policy={"kind": "contrastive", "adaptive_skew": True})
    check_policy(config, "distill")
    own = config.objective.student_text
    assert (config.objective.between, config.objective.alpha, config.objective.lam) == ("teacher||assistant", -1, 0.1)
    assert (own.between, own.alpha, own.lam) == ("student||assistant", -1, 0.9)
    loss = main_loss(config, verb="distill", steps=3, vocab_size=9, corpus=False)
    assert loss.skew is not None
    assert loss.weights is not None, "β"
    given = run(policy="contrastive", objective={"alpha": -3, "student_text": {"between": "student||teacher"}})
    assert (given.objective.alpha, given.objective.student_text.between) == (-3, "student||teacher")


def test_an_objective_for_text_that_nobody_writes() -> None:
    config = run(objective={"student_text": {"between": "student||teacher"}})
    with pytest.warns(SettingWarning, match=r"objective.student_text has no effect with policy.kind: dataset"):
        check_policy(config, "distill")


def test_answers_that_cannot_be_repeated() -> None:
    generation = {"engine": {"kind": "transformers", "continuous_batching": True}}
    with pytest.warns(SettingWarning, match=r"continuous_batching: sampled answers.*does not end exactly"):
        check_policy(run(policy={"kind": "on_policy", "generation": generation}), "distill")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_policy(run(policy={"kind": "on_policy", "generation": {**generation, "temperature": 0}}), "distill")


def test_a_student_without_a_generation_config(run_tree, monkeypatch) -> None:
    import amidkd.training.run as module

    make = module.make_student

    def bare(*args, **options):
        student = make(*args, **options)
        student.generation_config = None
        return student

    monkeypatch.setattr(module, "make_student", bare)
    run_tree["policy"] = {"kind": "on_policy", "generation": {"max_new_tokens": 4}}
    with pytest.raises(SettingError, match=r"policy.kind: on_policy: the student has no generation config.*save one"):
        distill(parse(run_tree))


def test_a_replay_buffer_smaller_than_a_batch(run_tree) -> None:
    run_tree["policy"] = {"kind": "adaptive", "capacity": 3, "generation": {"max_new_tokens": 4}}
    run_tree["data"]["validation_rows"] = 4
    with pytest.raises(SettingError, match=r"policy.capacity: .* 3 sequences, fewer than the 4 that it learns from"):
        distill(parse(run_tree))


def test_validation_rows_without_a_label(run_tree, tmp_path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": "1+1="}) + "\n")
    run_tree["policy"] = {"kind": "adaptive", "generation": {"max_new_tokens": 4}}
    run_tree["data"]["validation"] = str(held)
    with pytest.raises(SettingError, match="no validation row has a completion"):
        distill(parse(run_tree))


def test_refused_from_the_command_line_too(run_tree, tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run_tree))
    with pytest.raises(SettingError, match="cross-entropy cannot teach it"):
        sft(load(path, ["policy=mixed"]))
    with pytest.raises(SettingError, match=r"policy.on_policy_fraction: .* less than or equal to 1; got 1.2"):
        load(path, ["policy=mixed", "policy.on_policy_fraction=1.2"])
