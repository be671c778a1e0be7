"""Objectives: metrics that this run's evaluation will produce, each with the direction that is better."""

from pathlib import Path
from typing import Any

import pytest

from amidkd.errors import SettingError
from amidkd.evaluation import METRICS
from amidkd.sweep.goals import goals_of


def test_directions_are_those_of_the_table_and_a_minus_turns_them(sweep_config) -> None:
    objective = ["nll", "exact_match_greedy", "-top1_agreement"]
    config = sweep_config(sweep={"objective": objective})
    assert [(goal.metric, goal.direction) for goal in goals_of(config)] == [
        ("nll", "minimize"),
        ("exact_match_greedy", "maximize"),
        ("top1_agreement", "minimize"),
    ]


def test_every_metric_is_either_produced_or_there_is_a_reason(sweep_config) -> None:
    reasons = {}
    for name in METRICS:
        try:
            goals_of(sweep_config(sweep={"objective": name}))
        except SettingError as error:
            reasons[name] = str(error)
    odd = [why for why in reasons.values() if "will not produce it" not in why and "neither direction" not in why]
    assert not odd
    assert "nll" not in reasons


@pytest.mark.parametrize(
    ("sections", "objective", "said"),
    [
        ({}, "nl", "did you mean 'nll'"),
        ({}, "bleu_greedy", "add bleu to evaluation.metrics"),
        ({}, "phoneme_error_rate_greedy", "add phoneme_error_rate to evaluation.metrics"),
        ({}, "self_bleu_sampled", "two or more evaluation.sampling_seeds"),
        ({}, "length_greedy", "neither direction is better"),
        ({}, "text_nll", "evaluation.text"),
        ({}, "pass_at_1", "add evaluation.code"),
        ({}, "judge_win_rate", "did you mean|add evaluation.judge"),
        ({"teacher": None, "student": {"warm_start": None}}, "kl_teacher_student", "add a teacher section"),
        ({"teacher": {"kind": "served", "model": None}}, "acceptance", "can be loaded here"),
        ({}, "dolly.nll", "set evaluation.suite"),
        ({"evaluation": {"suite": ["dolly"]}}, "doly.nll", "did you mean 'dolly'"),
        ({"evaluation": {"suite": ["dolly"]}}, "dolly.rouge", "no metric 'rouge'"),
        ({"evaluation": {"suite": ["dolly"]}}, "dolly.bleu_greedy", "add bleu to evaluation.metrics"),
    ],
)
def test_what_will_not_be_produced_is_refused_with_the_setting(
    sweep_config, sections: dict[str, Any], objective: str, said: str
) -> None:
    sections = {name: value for name, value in sections.items() if name != "student"}
    with pytest.raises(SettingError, match=said):
        goals_of(sweep_config(**sections, sweep={"objective": objective}))


@pytest.mark.parametrize(
    ("file", "objective", "said"),
    [
        ("texts.jsonl", "rouge_l_greedy", "plain `text`"),
        ("prompts.jsonl", "exact_match_greedy", "no row with `completion` or `references`"),
        ("prompts.jsonl", "nll", "no row with a `completion`"),
        ("prompts.jsonl", "coverage", "no row with a `completion`"),
    ],
)
def test_the_held_out_rows_decide(sweep_config, sweep_world: Path, file: str, objective: str, said: str) -> None:
    config = sweep_config(evaluation={"data": str(sweep_world / file)}, sweep={"objective": objective})
    with pytest.raises(SettingError, match=said):
        goals_of(config)


def test_a_metric_of_the_suite_has_its_task_in_front(sweep_config) -> None:
    config = sweep_config(evaluation={"suite": ["dolly"]}, sweep={"objective": "dolly.rouge_l_sampled"})
    assert [(goal.metric, goal.direction) for goal in goals_of(config)] == [("dolly.rouge_l_sampled", "maximize")]
