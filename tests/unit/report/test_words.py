"""Numbers and settings as people read them."""

import math

import pytest

from amidkd.config import parse
from amidkd.evaluation import METRICS, Estimate, StandardError
from amidkd.evaluation.display import show
from amidkd.report.costs import facts_of
from amidkd.report.words import (
    count,
    describe_objective,
    describe_policy,
    describe_teacher,
    duration,
    mebibytes,
    number,
)


def objective(**settings):
    return parse(
        {"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o", "objective": settings}
    ).objective


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "KL(teacher‖assistant), α = −0.5, λ = 0.1"),
        ({"between": "student||teacher"}, "KL(student‖teacher)"),
        (
            {"divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7}, "alpha": -3},
            "alpha-beta[a = 0.2, b = 0.7](teacher‖assistant), α = −3, λ = 0.1",
        ),
        (
            {"between": "assistant||student", "alpha": 1, "lam": {"kind": "adaptive"}, "detach_assistant": True},
            "KL(assistant‖student), α = 1, λ = 0.4 → 1 (adaptive), assistant detached",
        ),
        (
            {"alpha": {"kind": "piecewise", "points": [[0, 1], [0.5, -1], [1, -3]]}, "temperature": 2},
            "KL(teacher‖assistant), α = 1 → −1 → −3, λ = 0.1, temperature 2",
        ),
        (
            {"terms": [{"between": "teacher||student", "weight": 0.25}], "cross_entropy_weight": 0.5},
            "0.25 · [KL(teacher‖student)], plus 0.5 · cross-entropy on the labels",
        ),
    ],
)
def test_an_objective_reads_as_its_formula(settings: dict, expected: str) -> None:
    assert describe_objective(objective(**settings)) == expected


def test_an_estimate_is_shown_in_its_unit_with_each_error() -> None:
    estimate = Estimate(0.4512, (StandardError("prompts", 0.0351, 200), StandardError("training seeds", 0.01, 2)))
    shown = show(estimate, METRICS["exact_match_greedy"])
    assert shown.text == "45.1 %"
    assert [(error.text, error.over) for error in shown.errors] == [("3.5", "prompts"), ("1.0", "training seeds")]
    assert show(estimate, METRICS["nll"], sign=True).text == "+0.451"
    assert show(Estimate(-0.25), METRICS["nll"], sign=True).text == "−0.250"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.0004, "0.0004"),
        (-0.00042, "−0.0004"),
        (2.4e-7, "2.4e−07"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "unknown"),
    ],
)
def test_small_and_endless_numbers_do_not_read_as_zero(value: float, text: str) -> None:
    assert show(Estimate(value), METRICS["nll"]).text == text


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (count, 107072, "107 k"),
        (count, 2461536, "2.46 M"),
        (count, 7.2e9, "7.2 G"),
        (count, 200, "200"),
        (count, 750.0125, "750"),
        (duration, 0.84, "0.8 s"),
        (duration, 59.7, "1 min 0 s"),
        (duration, 185, "3 min 5 s"),
        (duration, 8040, "2 h 14 min"),
        (mebibytes, 812.3, "812 MiB"),
        (mebibytes, 81920, "80.0 GiB"),
        (number, -0.5, "−0.5"),
        (number, 1e-5, "1e−05"),
    ],
)
def test_amounts(form, value: float, text: str) -> None:
    assert form(value) == text


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (
            {"kind": "mixed", "on_policy_fraction": 0.25},
            "the student's own in 25% of the steps, the data's in the others",
        ),
        ({"kind": "sequence_level", "writer": "student"}, "text that the student wrote beforehand"),
        ({"kind": "adaptive", "initial_threshold": 0.3, "replay_ratio": "constant"}, "with probability φ, from 0.3 up"),
    ],
)
def test_a_policy_says_whose_text(policy: dict, expected: str) -> None:
    run = {"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o", "policy": policy}
    assert expected in describe_policy(parse(run).policy)


def test_an_objective_says_what_differs_on_the_students_text_and_by_weight() -> None:
    objective = {"student_text": {"between": "student||teacher"}, "weighting": {"student": 0.5, "by": "disagreement"}}
    run = {"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o", "objective": objective}
    text = describe_objective(parse(run).objective)
    assert "; on the student's text KL(student‖teacher)" in text
    assert text.endswith("; weights: student's text × 0.5, more where disagreement is high (strength 1)")


def test_the_stages_of_a_chain_are_facts() -> None:
    chain = [
        {"name": "warm", "policy": "warmup", "steps": 1200, "seconds": 65.0},
        {"name": "main", "policy": "dataset", "steps": 30, "seconds": 5.0},
    ]
    expected = "warm (warmup, 1,200 steps, 1 min 5 s) → main (dataset, 30 steps, 5.0 s)"
    assert facts_of({"chain": chain}) == [("stages of the run file", expected)]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"model": "t"}, ""),
        ({"kind": "cached", "model": "t"}, "its 64 likeliest tokens and the rest, from disk"),
        ({"kind": "served", "format": "hidden"}, "its hidden states, from a server"),
        (
            {"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "weights": "search", "drop": 0.25},
            "2 teachers at once, weights searched, each left out of 25 % of the steps",
        ),
        (
            {"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "weights": [1, 0.5]},
            "2 teachers at once, weights 1, 0.5",
        ),
        ({"model": "t", "alignment": "text"}, "of another tokenizer, matched by text"),
    ],
)
def test_where_distributions_come_from(teacher, words) -> None:
    run = {"student": "s", "teacher": teacher, "data": {"train": "d"}, "output": "o"}
    assert describe_teacher(parse(run).teacher) == words
