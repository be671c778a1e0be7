"""Estimates and their standard errors against their textbook forms and against a bootstrap."""

import math

import numpy as np
import pytest

from amidkd.evaluation.statistics import (
    Estimate,
    Interval,
    Scores,
    StandardError,
    difference,
    estimate,
    exponential,
    ratio,
    stack,
)

RNG = np.random.default_rng(7)


def test_equal_counts_give_the_textbook_standard_error() -> None:
    values = RNG.normal(size=40)
    found = estimate(Scores(values, np.ones(40)))
    assert found.value == pytest.approx(values.mean(), rel=1e-12)
    assert found.errors == (StandardError("prompts", pytest.approx(values.std(ddof=1) / math.sqrt(40), rel=1e-12), 40),)


def test_token_weights_give_the_ratio_and_its_bootstrap_error() -> None:
    counts = RNG.integers(1, 30, size=200).astype(float)
    sums = counts * RNG.normal(1.0, 0.5, size=200)
    value, error = ratio(sums, counts)
    assert value == pytest.approx(sums.sum() / counts.sum(), rel=1e-12)
    draws = RNG.integers(0, 200, size=(4000, 200))
    bootstrap = (sums[draws].sum(1) / counts[draws].sum(1)).std()
    assert error == pytest.approx(bootstrap, rel=0.08)


def test_errors_over_prompts_and_over_seeds_are_kept_apart() -> None:
    values = RNG.normal(size=(5, 60)) + RNG.normal(size=(5, 1)) * 0.3
    found = estimate(Scores(values, np.ones((5, 60)), ("sampling seeds", "prompts")))
    over_prompts, over_seeds = values.mean(0), values.mean(1)
    assert found.value == pytest.approx(values.mean())
    assert [error.over for error in found.errors] == ["prompts", "sampling seeds"]
    assert found.error("prompts").value == pytest.approx(over_prompts.std(ddof=1) / math.sqrt(60))
    assert found.error("sampling seeds").value == pytest.approx(over_seeds.std(ddof=1) / math.sqrt(5))
    assert (found.error("prompts").n, found.error("sampling seeds").n) == (60, 5)


def test_a_single_seed_says_nothing_about_seeds() -> None:
    found = estimate(Scores(np.ones((1, 9)), np.ones((1, 9)), ("sampling seeds", "prompts")))
    assert found.error("sampling seeds") is None
    assert math.isnan(ratio(np.array([1.0]), np.array([2.0]))[1])


def test_prompts_without_the_thing_measured_do_not_count() -> None:
    sums, counts = np.array([2.0, 0.0, 6.0, 3.0]), np.array([1.0, 0.0, 2.0, 1.0])
    some = estimate(Scores(sums, counts))
    rest = estimate(Scores(sums[counts > 0], counts[counts > 0]))
    assert some == rest
    assert some.error("prompts").n == 3


def test_pairing_removes_what_both_models_share() -> None:
    hard = RNG.normal(size=300) * 10
    first, second = hard + RNG.normal(size=300), hard + RNG.normal(size=300)
    ones = np.ones(300)
    found = difference(Scores(first, ones), Scores(second, ones))
    gaps = first - second
    assert found.value == pytest.approx(gaps.mean())
    assert found.error("prompts").value == pytest.approx(gaps.std(ddof=1) / math.sqrt(300))
    assert found.error("prompts").value < 0.3 * estimate(Scores(first, ones)).error("prompts").value


def test_a_model_differs_from_itself_by_nothing() -> None:
    scores = Scores(
        RNG.normal(size=(3, 20)), RNG.integers(1, 9, size=(3, 20)).astype(float), ("sampling seeds", "prompts")
    )
    found = difference(scores, scores)
    assert found.value == 0
    assert [(error.over, error.value) for error in found.errors] == [("prompts", 0.0), ("sampling seeds", 0.0)]


def test_a_difference_needs_the_same_prompts() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        difference(Scores(np.ones(3), np.ones(3)), Scores(np.ones(4), np.ones(4)))


def test_stacking_training_seeds_adds_their_error() -> None:
    runs = [Scores(RNG.normal(loc, 1, size=50), np.ones(50)) for loc in (0.0, 1.0)]
    found = estimate(stack(runs, "training seeds"))
    means = np.array([run.sums.mean() for run in runs])
    assert found.value == pytest.approx(means.mean())
    assert found.error("training seeds").value == pytest.approx(means.std(ddof=1) / math.sqrt(2))
    with pytest.raises(ValueError, match="one shape"):
        stack([runs[0], Scores(np.ones(3), np.ones(3))], "training seeds")


def test_perplexity_is_the_exponential_with_the_delta_method() -> None:
    found = exponential(Estimate(1.5, (StandardError("prompts", 0.1, 5),)))
    assert found.value == pytest.approx(math.exp(1.5))
    step = 1e-5
    slope = (math.exp(1.5 + step) - math.exp(1.5 - step)) / (2 * step)
    assert found.errors[0].value == pytest.approx(0.1 * slope)
    assert exponential(Estimate(1e4)).value == math.inf


@pytest.mark.filterwarnings("error")
def test_one_infinite_score_makes_an_infinite_average_of_unknown_error() -> None:
    scores = Scores(np.array([1.0, math.inf, 2.0]), np.ones(3))
    for found in (estimate(scores), difference(scores, Scores(np.ones(3), np.ones(3)))):
        assert found.value == math.inf
        assert math.isnan(found.error("prompts").value)
        again = Estimate.from_json(found.to_json())
        assert again.value == math.inf
        assert math.isnan(again.error("prompts").value)


def test_records_give_back_what_was_written() -> None:
    for value in (0.25, math.inf, -math.inf):
        before = Estimate(value, (StandardError("prompts", 0.1, 5), StandardError("training seeds", 0.2, 2)))
        assert Estimate.from_json(before.to_json()) == before
    assert math.isnan(Estimate.from_json(Estimate(math.nan).to_json()).value)


def test_an_interval_goes_with_its_estimate() -> None:
    before = Estimate(0.25, (StandardError("prompts", 0.1, 5),), Interval(0.1, 0.5, 0.95))
    assert Estimate.from_json(before.to_json()) == before
    assert before.to_json()["interval"] == [0.1, 0.5]
    assert "interval" not in Estimate(0.25).to_json()
    assert before.scaled(100).interval == Interval(10.0, 50.0, 0.95)
    assert exponential(before).interval.high == pytest.approx(math.exp(0.5))
    endless = Estimate(1.0, (), Interval(0.5, math.inf, 0.9))
    assert Estimate.from_json(endless.to_json()) == endless


def test_other_numbers_of_sampling_seeds_leave_the_error_over_prompts() -> None:
    axes = ("sampling seeds", "prompts")
    first, second = (Scores(RNG.random((seeds, 20)), np.ones((seeds, 20)), axes) for seeds in (3, 5))
    found = difference(first, second)
    gaps = first.sums.mean(axis=0) - second.sums.mean(axis=0)
    assert [error.over for error in found.errors] == ["prompts"]
    assert found.error("prompts").value == pytest.approx(gaps.std(ddof=1) / math.sqrt(20))


def test_a_gap_of_a_formula_is_left_out_on_both_sides_at_once() -> None:
    parts = RNG.uniform(0.5, 2.0, size=(2, 40, 3))
    first, second = (Scores(side, np.ones(40), formula="calibration") for side in parts)
    found = difference(first, second)
    gaps = [
        (np.abs(one[:-1]).sum() / one[-1]) - (np.abs(two[:-1]).sum() / two[-1])
        for one, two in ((np.delete(parts[0], n, 0).sum(0), np.delete(parts[1], n, 0).sum(0)) for n in range(40))
    ]
    assert found.value == pytest.approx(estimate(first).value - estimate(second).value)
    assert found.error("prompts").value == pytest.approx(math.sqrt(39 / 40 * np.square(gaps - np.mean(gaps)).sum()))
    with pytest.raises(ValueError, match="one metric"):
        difference(first, Scores(np.ones(40), np.ones(40)))


def test_nothing_has_no_average() -> None:
    with pytest.raises(ValueError, match="all counts are 0"):
        estimate(Scores(np.zeros(3), np.zeros(3)))
    with pytest.raises(ValueError, match="one shape"):
        Scores(np.zeros(3), np.zeros(4))
