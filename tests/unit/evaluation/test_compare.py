"""A verdict says what prompts and training seeds support, each by itself."""

import math

import numpy as np
import pytest

from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.compare import Runs, compare_with, metric_of
from amidkd.evaluation.paired import sign_flip
from amidkd.evaluation.statistics import Scores, difference

RNG = np.random.default_rng(3)
HARD = RNG.normal(size=120)
FEW = Bootstrap(resamples=400)


def runs(name: str, *shifts: float, noise: float = 0.3, seed: int = 0, metric: str = "nll") -> Runs:
    """A run for each shift, whose scores are shifted by it from those of the same hard and easy prompts."""
    draw = np.random.default_rng(seed)
    scores = tuple({metric: Scores(HARD + shift + noise * draw.normal(size=120), np.ones(120))} for shift in shifts)
    return Runs(name, tuple(range(len(shifts))), scores)


def verdict(baseline: Runs, other: Runs):
    (gaps,) = compare_with(baseline, [other], bootstrap=FEW)
    return gaps[0].verdict


def test_the_same_model_is_the_same() -> None:
    found = verdict(runs("a", 0.0), runs("b", 0.0))
    assert (found.finding, found.words) == ("same", "the same on every prompt")


def test_a_difference_inside_the_noise_is_called_so() -> None:
    found = verdict(runs("a", 0.0), runs("b", 0.01, seed=1))
    assert (found.finding, found.words) == ("noise", "inside the noise")


def test_one_run_each_holds_over_prompts_and_says_nothing_of_seeds() -> None:
    found = verdict(runs("a", 0.0), runs("b", 0.5, seed=1))
    assert (found.finding, found.words) == ("prompts", "worse over prompts; training seeds unknown")
    assert verdict(runs("a", 0.5), runs("b", 0.0, seed=1)).words.startswith("better")
    shares = runs("a", 0.0, metric="exact_match_greedy"), runs("b", 0.5, seed=1, metric="exact_match_greedy")
    assert verdict(*shares).words.startswith("better"), "higher is better here"
    lengths = runs("a", 0.0, metric="length_greedy"), runs("b", 0.5, seed=1, metric="length_greedy")
    assert verdict(*lengths).words.startswith("higher"), "neither way is better"


def test_runs_that_agree_hold_over_both() -> None:
    found = verdict(runs("a", 0.0, 0.05, 0.02), runs("b", 0.5, 0.56, 0.51, seed=1))
    assert (found.finding, found.words) == ("holds", "worse over prompts and training seeds")


def test_runs_that_scatter_support_prompts_only() -> None:
    found = verdict(runs("a", 0.0, 0.9, -0.6), runs("b", 0.2, 0.1, 1.0, seed=1))
    assert found.finding == "seeds differ"
    assert found.words == "worse over prompts only, inside the noise of training seeds"


def test_few_seeds_that_agree_are_said_to_be_few() -> None:
    # Three metrics that move alike: one alone would pass over two seeds, three together do not.
    def group(name: str, *shifts: float, seed: int = 0) -> Runs:
        alone = runs(name, *shifts, seed=seed)
        return Runs(name, alone.seeds, tuple({f"task{n}.nll": run["nll"] for n in range(3)} for run in alone.scores))

    (gaps,) = compare_with(group("a", 0.0, 0.0), [group("b", 0.5, 0.5, seed=1)], bootstrap=FEW)
    assert gaps[0].seeds.p <= 0.05 < gaps[0].seeds_adjusted
    assert gaps[0].verdict.finding == "few seeds"
    assert gaps[0].verdict.words == "worse over prompts; training seeds agree, too few for so many tests"


def test_many_tests_are_corrected_together() -> None:
    # Ten metrics without a difference: alone some would pass, together none may.
    names = [f"task{n}.nll" for n in range(10)]
    first, second = ({name: Scores(RNG.normal(size=60), np.ones(60)) for name in names} for _ in range(2))
    (gaps,) = compare_with(Runs("a", (1,), (first,)), [Runs("b", (1,), (second,))], bootstrap=FEW)
    assert [gap.metric for gap in gaps] == names
    smallest = min(gaps, key=lambda gap: gap.p)
    assert smallest.adjusted == pytest.approx(min(1.0, 10 * smallest.p))
    assert all(gap.verdict.finding == "noise" for gap in gaps)
    two = compare_with(Runs("a", (1,), (first,)), [Runs(n, (1,), (second,)) for n in "bc"], bootstrap=FEW)
    assert min(gap.adjusted for gap in two[0]) == pytest.approx(min(1.0, 20 * smallest.p))


def test_a_gap_is_the_paired_difference_with_its_test() -> None:
    first, second = runs("a", 0.0), runs("b", 0.1, seed=1)
    ((gap,),) = compare_with(first, [second], bootstrap=FEW)
    ours, theirs = second.scores[0]["nll"], first.scores[0]["nll"]
    assert gap.gap.value == difference(ours, theirs).value
    assert gap.gap.interval.low < gap.gap.value < gap.gap.interval.high
    assert gap.p == sign_flip(ours, theirs)
    assert (gap.prompts, gap.differing) == (120, 120)


def test_other_numbers_of_sampling_seeds_are_averaged_first() -> None:
    one = Scores(HARD[None], np.ones((1, 120)), ("sampling seeds", "prompts"))
    five = Scores(np.repeat(HARD[None], 5, 0), np.ones((5, 120)), ("sampling seeds", "prompts"))
    sides = Runs("a", (1,), ({"nll": one},)), Runs("b", (1, 2), ({"nll": five}, {"nll": one}))
    ((gap,),) = compare_with(sides[0], [sides[1]], bootstrap=FEW)
    assert gap.gap.value == pytest.approx(0, abs=1e-12)
    assert gap.differing == 0
    assert gap.verdict.finding == "same"


def test_an_infinite_value_is_no_verdict() -> None:
    infinite = Scores(np.append(HARD[:-1], math.inf), np.ones(120))
    found = verdict(runs("a", 0.0), Runs("b", (1,), ({"nll": infinite},)))
    assert (found.finding, found.words) == ("unknown", "unknown (a value is not finite)")


def test_training_and_sampling_seeds_are_kept_apart() -> None:
    draw = np.random.default_rng(0)

    def group(training: float, sampling: float) -> Runs:
        return Runs(
            "a",
            tuple(range(200)),
            tuple(
                {
                    "nll": Scores(
                        np.repeat(centre + sampling * draw.normal(size=(5, 1)), 4, 1),
                        np.ones((5, 4)),
                        ("sampling seeds", "prompts"),
                    )
                }
                for centre in training * draw.normal(size=200)
            ),
        )

    found = group(0.5, 0.2).spread("nll")
    assert found.training == pytest.approx(0.5, rel=0.12)
    assert found.sampling == pytest.approx(0.2, rel=0.06)
    # Runs that differ by the drawing of answers alone have no spread of their own, although their values differ.
    assert group(0.0, 0.2).spread("nll").training < 0.06
    assert runs("a", 0.0).spread("nll") is None
    assert runs("a", 0.0, 0.1).spread("nll").sampling is None


def test_a_group_has_errors_over_prompts_and_over_training_seeds() -> None:
    found = runs("a", 0.0, 0.4).estimates(FEW)
    assert {error.over for error in found["nll"].errors} == {"prompts", "training seeds"}
    assert found["perplexity"].value == pytest.approx(math.exp(found["nll"].value))
    assert found["perplexity"].interval.low == pytest.approx(math.exp(found["nll"].interval.low))


def test_a_metric_of_a_task_is_named_with_it() -> None:
    assert metric_of("dolly.rouge_l_sampled").label == "dolly: ROUGE-L, sampled"
    assert metric_of("nll").label == "NLL of real text"
    assert metric_of("dolly.accuracy") is None


def test_rounding_is_no_difference() -> None:
    draw = np.random.default_rng(5)
    tokens = draw.integers(5, 40, size=120).astype(float)
    sums = 2.5 * tokens
    # As where rows were batched otherwise: up, and by the same few digits on every prompt.
    first, second = Scores(sums, tokens), Scores(sums + 2e-7 * tokens, tokens)
    assert verdict(Runs("a", (0,), ({"nll": first},)), Runs("b", (0,), ({"nll": second},))).finding == "same"
    third = Scores(sums + 1e-4 * tokens, tokens)
    assert verdict(Runs("a", (0,), ({"nll": first},)), Runs("b", (0,), ({"nll": third},))).finding == "prompts"
