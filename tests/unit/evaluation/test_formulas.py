"""Formulas of statistics against sacrebleu and plain definitions; the jackknife against its definition."""

import numpy as np
import pytest

from amidkd.evaluation.formulas import FORMULAS
from amidkd.evaluation.statistics import Scores, difference, estimate, stack


def statistics(*shape: int, seed: int = 0) -> np.ndarray:
    """BLEU statistics that could be: matches below counts."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (*shape, 4))
    matches = rng.binomial(counts, [0.7, 0.4, 0.2, 0.1])
    lengths = rng.integers(1, 30, (*shape, 2))
    return np.concatenate([lengths, matches, counts], axis=-1).astype(float)


def test_bleu_is_that_of_sacrebleu_from_the_same_counts() -> None:
    from sacrebleu.metrics import BLEU

    for row in statistics(300):
        said, right, *rest = row.astype(int).tolist()
        expected = BLEU.compute_bleu(rest[:4], rest[4:], said, right, smooth_method="exp").score
        assert float(FORMULAS["bleu"](row)) == pytest.approx(expected, abs=1e-9)


def test_nothing_said_scores_0() -> None:
    assert float(FORMULAS["bleu"](np.zeros(10))) == 0.0
    assert float(FORMULAS["chrf"](np.zeros(18))) == 0.0


def test_calibration_is_the_mean_gap_of_bins() -> None:
    confidence, right = np.array([0.9, 0.8, 0.3, 0.2]), np.array([1.0, 0.0, 1.0, 0.0])
    gaps = np.array([(confidence - right)[2:].sum(), 0.0, (confidence - right)[:2].sum()])
    assert float(FORMULAS["calibration"](np.array([*gaps, 4.0]))) == pytest.approx(
        0.5 * abs(0.85 - 0.5) + 0.5 * abs(0.25 - 0.5)
    )


@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_errors_are_the_jackknife(shape: tuple[int, ...]) -> None:
    entries, axes = statistics(*shape), ("sampling seeds", "prompts")[-len(shape) :]
    counts = np.ones(shape)
    entries[..., 2], counts[..., 2] = 0.0, 0.0
    found = estimate(Scores(entries, counts, axes, "bleu"))
    formula = FORMULAS["bleu"]
    assert found.value == pytest.approx(float(formula(entries.reshape(-1, 10).sum(0))))
    for axis, name in enumerate(axes):
        clusters = entries.sum(axis=tuple(other for other in range(len(shape)) if other != axis))
        if name == "prompts":
            clusters = np.delete(clusters, 2, axis=0)
        n = len(clusters)
        without = [float(formula(np.delete(clusters, place, axis=0).sum(0))) for place in range(n)]
        wanted = ((n - 1) / n * np.square(np.array(without) - np.mean(without)).sum()) ** 0.5
        error = found.error(name)
        assert error is not None
        assert (error.value, error.n) == (pytest.approx(wanted), n)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    rng = np.random.default_rng(1)
    gaps = rng.uniform(0.1, 1.0, 40)
    entries = np.stack([gaps, np.ones(40)], axis=-1)
    found = estimate(Scores(entries, np.ones(40), formula="calibration"))
    plain = estimate(Scores(gaps, np.ones(40)))
    assert found.value == pytest.approx(plain.value)
    assert found.errors[0].value == pytest.approx(plain.errors[0].value)


def test_a_difference_is_paired() -> None:
    ours = Scores(statistics(20), np.ones(20), formula="bleu")
    near = statistics(20)
    near[3, 2] += 1
    theirs = Scores(near, np.ones(20), formula="bleu")
    assert difference(ours, ours).errors[0].value == 0.0
    gap = difference(ours, theirs)
    assert gap.value == pytest.approx(estimate(ours).value - estimate(theirs).value)
    assert 0 < gap.errors[0].value < 0.5 * estimate(ours).errors[0].value


def test_stacking_keeps_the_formula() -> None:
    parts = [Scores(statistics(5, seed=seed), np.ones(5), formula="bleu") for seed in range(3)]
    stacked = stack(parts, "training seeds")
    assert (stacked.axes, stacked.formula) == (("training seeds", "prompts"), "bleu")
    assert stacked.sums.shape == (3, 5, 10)
    assert estimate(stacked).error("training seeds").n == 3


def test_a_ratio_is_its_statistics() -> None:
    scores = Scores(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    assert float(scores.value_of(scores.statistics.sum(0))) == estimate(scores).value == 1.0
    with pytest.raises(ValueError, match="one shape"):
        Scores(np.zeros((3, 10)), np.zeros((3, 10)), formula="bleu")
