"""The sampler: its distribution, what top-k and top-p keep, and the streams of random numbers."""

import pytest
import torch
from torch import Tensor

from amidkd.models.sampling import Sampling, random_numbers

DRAWS = 20_000


def uniform_numbers(count: int, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def chi_squared(found: Tensor, probs: Tensor) -> float:
    """Pearson's statistic of counts against probabilities; nothing may be found where there is no mass."""
    live = probs > 0
    assert not found[~live].any()
    wanted = found.sum() * probs[live].double() / probs[live].double().sum()
    return float(((found[live] - wanted) ** 2 / wanted).sum())


def critical(bins: int) -> float:
    """The 99.99 % point of chi-squared with bins − 1 degrees of freedom (Wilson and Hilferty 1931)."""
    freedom = bins - 1
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * (2 / (9 * freedom)) ** 0.5) ** 3


def oracle(logits_V: Tensor, *, temperature: float, top_p: float, top_k: int) -> Tensor:
    """The distribution, by sorting, in float64."""
    probs, ids = (logits_V.double() / temperature).softmax(-1).sort(descending=True)
    if top_k:
        probs[top_k:] = 0
        probs = probs / probs.sum()
    before = probs.cumsum(-1) - probs
    probs[before >= top_p] = 0
    return torch.zeros_like(probs).scatter(0, ids, probs / probs.sum())


def test_samples_follow_the_distribution() -> None:
    """Chi-squared over 7 outcomes of 20,000 draws; the 99.9 % point with 6 degrees of freedom is 22.5."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, float("-inf"), 0.5, -3.0, 1.5]]).expand(20_000, -1)
    uniform = random_numbers(3, list(range(20_000)), 1)[:, 0]
    for temperature in (1.0, 0.7):
        found = Sampling(temperature=temperature).choose(logits, uniform).bincount(minlength=8)
        wanted = 20_000 * (logits[0] / temperature).softmax(-1)
        assert found[4] == 0
        live = wanted > 0
        assert float(((found[live] - wanted[live]) ** 2 / wanted[live]).sum()) < 22.5


def test_top_k_and_top_p_keep_what_they_say() -> None:
    probs = torch.tensor([[0.05, 0.4, 0.1, 0.3, 0.15]])
    logits, uniform = probs.log().expand(2000, -1), random_numbers(0, list(range(2000)), 1)[:, 0]
    kept = {
        (0, 1.0): {0, 1, 2, 3, 4},
        (2, 1.0): {1, 3},
        (0, 0.69): {1, 3},
        (0, 0.71): {1, 3, 4},
        (0, 1e-9): {1},
        (3, 0.99): {1, 3, 4},
        (1, 1.0): {1},
    }
    for (top_k, top_p), ids in kept.items():
        found = Sampling(top_k=top_k, top_p=top_p).choose(logits, uniform)
        assert set(found.tolist()) == ids, (top_k, top_p)


def test_the_largest_random_number_never_picks_a_token_without_mass() -> None:
    logits = torch.full((1, 50), float("-inf"))
    logits[0, :30] = 0.0
    almost_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert int(Sampling().choose(logits, almost_one)) == 29
    assert int(Sampling().choose(logits, torch.zeros(1, dtype=torch.float64))) == 0
    logits[0, :5] = float("-inf")
    assert int(Sampling().choose(logits, torch.zeros(1, dtype=torch.float64))) == 5


def test_rows_and_seeds_have_streams_of_their_own() -> None:
    numbers = [tuple(row) for seed in range(20) for row in random_numbers(seed, list(range(20)), 3).tolist()]
    assert len(set(numbers)) == 400
    assert torch.equal(random_numbers(7, [4], 3)[0], random_numbers(7, [1, 4], 3)[1])


def test_samples_of_a_large_vocabulary_follow_the_distribution() -> None:
    """V = 32,003 skewed probabilities over six orders of magnitude, in 60 bins of mixed ids; blocks do not divide V."""
    vocabulary, bins = 32_003, 60
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(vocabulary, generator=generator)
    logits[17], logits[255:258], logits[-1] = 9.0, 8.0, 9.0
    bin_V = torch.randint(bins, (vocabulary,), generator=generator)
    probs = torch.zeros(bins, dtype=torch.float64).index_add(0, bin_V, logits.double().softmax(-1))
    found = torch.zeros(bins)
    for start in range(0, DRAWS, 200):
        uniform = uniform_numbers(DRAWS)[start : start + 200]
        ids = Sampling().choose(logits.expand(200, -1), uniform)
        found += bin_V[ids].bincount(minlength=bins)
    assert chi_squared(found, probs) < critical(bins)


@pytest.mark.parametrize("vocabulary", [1, 2, 255, 256, 257, 600, 1024])
def test_the_token_is_the_inverse_of_the_cumulative_distribution(vocabulary: int) -> None:
    """Against one cumulative sum in float64; a difference of float32's rounding at a border moves by one at most."""
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 2 * torch.randn(500, vocabulary, generator=generator)
    uniform = uniform_numbers(500, seed=vocabulary)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    found = Sampling().choose(logits, uniform)[:, None]
    end = cumulative.gather(1, found)
    start = end - logits.double().softmax(-1).gather(1, found)
    assert (start - 1e-6 <= uniform[:, None]).all()
    assert (uniform[:, None] <= end + 1e-6).all()


@pytest.mark.parametrize(
    ("top_p", "top_k", "temperature"),
    [(0.9, 0, 1.0), (0.5, 0, 1.0), (0.05, 0, 1.0), (0.8, 0, 0.6), (1.0, 20, 1.0), (0.7, 20, 1.3)],
)
def test_top_p_and_top_k_sample_what_sorting_says(top_p: float, top_k: int, temperature: float) -> None:
    vocabulary = 300
    logits = 1.5 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k)
    found = sampling.choose(logits.expand(DRAWS, -1), uniform_numbers(DRAWS)).bincount(minlength=vocabulary)
    wanted = oracle(logits, temperature=temperature, top_p=top_p, top_k=top_k)
    kept = int((wanted > 0).sum())
    assert kept == 1 or chi_squared(found, wanted) < critical(kept)


def test_nucleus_of_a_large_vocabulary_is_that_of_sorting() -> None:
    logits = 2 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(5))
    ids = Sampling(top_p=0.3).choose(logits.expand(400, -1), uniform_numbers(400))
    assert (oracle(logits[0], temperature=1.0, top_p=0.3, top_k=0)[ids] > 0).all()
    assert len(set(ids.tolist())) > 100


def test_equally_likely_tokens_stay_in_the_nucleus_together() -> None:
    found = Sampling(top_p=0.5).choose(torch.zeros(4000, 8), uniform_numbers(4000)).bincount(minlength=8)
    assert chi_squared(found, torch.full((8,), 1 / 8)) < critical(8)


@pytest.mark.parametrize("vocabulary", [5, 256, 700])
def test_greedy_takes_the_first_of_the_largest(vocabulary: int) -> None:
    logits = torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(0)).round()
    wanted = [row.index(max(row)) for row in logits.tolist()]
    assert Sampling(temperature=0).choose(logits, torch.empty(0)).tolist() == wanted


@pytest.mark.parametrize("settings", [{}, {"temperature": 0}, {"top_p": 0.9}, {"top_k": 3}, {"top_k": 3, "top_p": 0.5}])
@pytest.mark.parametrize("vocabulary", [7, 600])
def test_rows_without_a_distribution_are_told(settings: dict[str, float], vocabulary: int) -> None:
    """They must not spoil the rows beside them."""
    logits = torch.zeros(5, vocabulary)
    logits[1, 3], logits[2, 0], logits[3] = float("nan"), float("inf"), float("-inf")
    logits[4, 1:] = float("-inf")
    found = Sampling(**settings).choose(logits, uniform_numbers(5)).tolist()  # type: ignore[arg-type]
    assert found[1:4] == [-1, -1, -1]
    assert found[0] >= 0
    assert found[4] == 0


def test_huge_logits_do_not_overflow() -> None:
    logits = torch.tensor([[-3e4, -3e4, -4e4], [3e4, 0.0, 3e4]]).repeat(300, 1)
    found = Sampling().choose(logits, uniform_numbers(600)).view(-1, 2)
    assert set(found[:, 0].tolist()) == {0, 1}
    assert set(found[:, 1].tolist()) == {0, 2}
