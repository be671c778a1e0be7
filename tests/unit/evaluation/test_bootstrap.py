"""Intervals against SciPy's, against the coverage that they promise, and where there is nothing to draw again."""

import math

import numpy as np
import pytest

from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.statistics import Scores, difference, estimate

RNG = np.random.default_rng(11)


def of(scores: Scores, **settings):
    return Bootstrap(**settings).estimates({"m": scores})["m"].interval


def test_it_is_scipys_bca_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = RNG.gamma(1.0, 1.0, size=40)
    found = of(Scores(values, np.ones(40)), resamples=40_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=40_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)
    # Skewed scores: the interval is not symmetric, which tells BCa from the normal interval.
    assert found.high - values.mean() > 1.1 * (values.mean() - found.low)


def test_a_ratio_of_sums_is_scipys_too() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = RNG.integers(1, 20, size=60).astype(float)
    sums = counts * RNG.gamma(2.0, 0.3, size=60)
    found = of(Scores(sums, counts), resamples=40_000)
    theirs = stats.bootstrap(
        (sums, counts),
        lambda y, x, axis: y.sum(axis) / x.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=40_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)


def test_a_formula_gives_the_interval_of_the_ratio_that_it_is() -> None:
    # Two bins of which the second stays empty: the calibration error is then |Σ gaps| / Σ tokens.
    gaps, tokens = RNG.uniform(0.5, 2.0, size=50), RNG.integers(1, 9, size=50).astype(float)
    parts = np.stack([gaps, np.zeros(50), tokens], axis=-1)
    whole, plain = Scores(parts, tokens, formula="calibration"), Scores(gaps, tokens)
    assert estimate(whole).value == pytest.approx(estimate(plain).value)
    assert estimate(whole).errors[0].value == pytest.approx(estimate(plain).errors[0].value, rel=0.05)
    assert (of(whole).low, of(whole).high) == pytest.approx((of(plain).low, of(plain).high), rel=1e-9)


def test_it_covers_what_it_promises() -> None:
    inside = 0
    for trial in range(300):
        scores = (np.random.default_rng(trial).random(60) < 0.3).astype(float)
        interval = of(Scores(scores, np.ones(60)), resamples=400, level=0.9)
        inside += interval.low <= 0.3 <= interval.high
    assert 0.86 <= inside / 300 <= 0.95


def test_a_wider_level_is_a_wider_interval_and_the_draws_are_fixed() -> None:
    scores = Scores(RNG.normal(size=80), np.ones(80))
    narrow, wide = of(scores, level=0.8), of(scores, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert of(scores) == of(scores)
    assert of(scores) != of(scores, seed=1)


def test_draws_in_pieces_are_the_same_draws(monkeypatch) -> None:
    scores = Scores(RNG.normal(size=80), np.ones(80))
    whole = of(scores)
    monkeypatch.setattr("amidkd.evaluation.bootstrap._ROOM", 80 * 7)
    pieces = of(scores)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


def test_a_metric_has_the_same_interval_alone_and_among_others() -> None:
    parts = RNG.uniform(0.5, 2.0, size=(50, 3))
    scores = {
        "a": Scores(RNG.normal(size=50), np.ones(50)),
        "b": Scores(parts, np.ones(50), formula="calibration"),
        "c": Scores(RNG.normal(size=50), np.append(np.zeros(5), np.ones(45))),
        "never": Scores(np.zeros(50), np.ones(50)),
    }
    together = Bootstrap().estimates(scores)
    assert list(together) == list(scores)
    for name, entry in scores.items():
        alone = Bootstrap().estimates({"m": entry})["m"]
        assert (together[name].value, together[name].errors) == (alone.value, alone.errors)
        if alone.interval is not None:
            ends = (together[name].interval.low, together[name].interval.high)
            assert ends == pytest.approx((alone.interval.low, alone.interval.high), rel=1e-9)
    assert together["never"].interval is None


def test_pairing_makes_the_interval_of_a_gap_narrow() -> None:
    hard = RNG.normal(size=200) * 10
    first, second = Scores(hard + RNG.normal(size=200), np.ones(200)), Scores(hard, np.ones(200))
    found = Bootstrap().gap(first, second)
    before = difference(first, second)
    assert (found.value, found.errors) == (before.value, before.errors)
    half = (found.interval.high - found.interval.low) / 2
    assert half == pytest.approx(1.96 * found.error("prompts").value, rel=0.12)


def test_seeds_of_a_prompt_are_drawn_together() -> None:
    one = RNG.normal(size=(1, 50))
    repeated = Scores(np.repeat(one, 5, 0), np.ones((5, 50)), ("sampling seeds", "prompts"))
    single = Scores(one[0], np.ones(50))
    assert (of(repeated).low, of(repeated).high) == pytest.approx((of(single).low, of(single).high))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "values",
    [np.zeros(200), np.full(30, 0.7), np.array([1.0]), np.array([0.0, math.inf, 1.0])],
    ids=["never right", "all alike", "one prompt", "infinite"],
)
def test_nothing_to_draw_again_is_no_interval(values) -> None:
    assert of(Scores(values, np.ones(len(values)))) is None


def test_a_model_has_no_gap_from_itself() -> None:
    scores = Scores(RNG.normal(size=30), RNG.integers(1, 5, size=30).astype(float))
    found = Bootstrap().gap(scores, scores)
    assert (found.value, found.interval.low, found.interval.high) == (0, 0, 0)


def test_a_value_at_the_edge_of_its_draws_has_no_interval() -> None:
    # Five bins, each a little off by chance: every draw of six prompts is off by more.
    draw = np.random.default_rng(1)
    gaps = draw.normal(size=(6, 5))
    gaps -= gaps.mean(axis=0) - 0.01
    few = Scores(np.column_stack([gaps, np.full(6, 8.0)]), np.full(6, 8.0), formula="calibration")
    found = Bootstrap().estimates({"ece": few})["ece"]
    assert found.interval is None
    assert found.error("prompts").value > 0
