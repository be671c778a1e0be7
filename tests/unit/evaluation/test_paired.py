"""Paired tests against SciPy's, against every exchange by hand, and under the null hypothesis."""

import itertools
import math

import numpy as np
import pytest

from amidkd.evaluation.paired import holm, seed_gap, sign_flip, t_quantile, t_two_sided
from amidkd.evaluation.statistics import Scores

RNG = np.random.default_rng(5)


def plain(values) -> Scores:
    return Scores(np.asarray(values, dtype=float), np.ones(len(values)))


def test_few_prompts_are_exchanged_in_every_way() -> None:
    first, second = RNG.normal(size=8), RNG.normal(size=8)
    gaps = first - second
    found = [abs(np.dot(signs, gaps)) >= abs(gaps.sum()) - 1e-12 for signs in itertools.product((-1, 1), repeat=8)]
    assert sign_flip(plain(first), plain(second)) == pytest.approx(np.mean(found))


def test_many_prompts_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    first = RNG.normal(size=90)
    second = first + RNG.normal(0.15, 0.8, size=90)
    theirs = stats.permutation_test(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    ).pvalue
    assert sign_flip(plain(first), plain(second), flips=20_000) == pytest.approx(theirs, abs=0.012)


def test_ratios_exchange_sums_and_counts_together() -> None:
    counts = RNG.integers(1, 9, size=(2, 7)).astype(float)
    sums = counts * RNG.normal(1, 0.4, size=(2, 7))
    first, second = Scores(sums[0], counts[0]), Scores(sums[1], counts[1])

    def gap(sides) -> float:
        rows = np.arange(7)
        ours, theirs = (sums[s, rows].sum() / counts[s, rows].sum() for s in (np.array(sides), 1 - np.array(sides)))
        return abs(ours - theirs)

    found = [gap(sides) >= gap([0] * 7) - 1e-12 for sides in itertools.product((0, 1), repeat=7)]
    assert sign_flip(first, second) == pytest.approx(np.mean(found))


def test_under_the_null_p_is_uniform() -> None:
    values = []
    for trial in range(200):
        draw = np.random.default_rng(trial)
        hard = draw.normal(size=40) * 3
        values.append(sign_flip(plain(hard + draw.normal(size=40)), plain(hard + draw.normal(size=40)), flips=400))
    assert 0.02 <= np.mean(np.array(values) <= 0.05) <= 0.09
    assert 0.42 <= np.mean(values) <= 0.58


def test_a_model_does_not_differ_from_itself() -> None:
    scores = plain(RNG.normal(size=30))
    assert sign_flip(scores, scores) == 1.0
    assert sign_flip(plain(np.ones(2000)), plain(np.zeros(2000)), flips=500) == pytest.approx(1 / 501)
    assert math.isnan(sign_flip(plain([1.0, math.inf]), plain([1.0, 2.0])))


def test_the_draws_are_fixed() -> None:
    first, second = plain(RNG.normal(size=60)), plain(RNG.normal(size=60))
    assert sign_flip(first, second) == sign_flip(first, second) == sign_flip(second, first)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    adjusted = holm([0.02, math.nan, 0.5])
    assert adjusted[0] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])
    assert holm([]) == []


@pytest.mark.parametrize("df", [1, 1.7, 2, 5, 30, 400])
def test_students_t_is_scipys(df: float) -> None:
    t = pytest.importorskip("scipy.stats").t
    for value in (0.0, 0.3, 2.0, 12.0):
        assert t_two_sided(value, df) == pytest.approx(2 * t.sf(value, df), rel=1e-7, abs=1e-30)
        assert t_two_sided(-value, df) == t_two_sided(value, df)
    for level in (0.9, 0.975, 0.995):
        assert t_quantile(level, df) == pytest.approx(t.ppf(level, df), rel=1e-7)


def test_runs_with_the_same_seeds_are_paired() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = {1: 0.50, 2: 0.62, 3: 0.55}, {3: 0.50, 1: 0.46, 2: 0.57}
    theirs = stats.ttest_rel([0.50, 0.62, 0.55], [0.46, 0.57, 0.50])
    found = seed_gap(first, second)
    interval = theirs.confidence_interval(0.95)
    assert found.paired
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))


def test_runs_with_other_seeds_are_compared_by_welch() -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = {1: 0.50, 2: 0.62, 3: 0.55}, {4: 0.30, 5: 0.31}
    theirs = stats.ttest_ind(list(first.values()), list(second.values()), equal_var=False)
    found = seed_gap(first, second)
    interval = theirs.confidence_interval(0.95)
    assert not found.paired
    assert (found.p, found.df) == pytest.approx((theirs.pvalue, theirs.df))
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))


def test_one_run_says_nothing_about_the_next() -> None:
    assert seed_gap({1: 0.5}, {1: 0.4, 2: 0.4}) is None
    assert seed_gap({1: 0.5, 2: math.inf}, {1: 0.4, 2: 0.4}) is None
    assert math.isnan(seed_gap({1: 0.5, 2: 0.5}, {1: 0.4, 2: 0.4}).p)
