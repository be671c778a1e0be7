"""Every backend is a route to one number: over the whole catalogue, value and gradient are those of ``naive``.

The reference is ``naive`` (autograd through full logits) in float64, on the same numbers. The gradient's error is
max|error| / max(max|reference|, 1e-3, loss/100): 1e-9 in float64; 1e-4 in float32 with λ in [0.01, 0.99] and logits of
standard deviation 4 at most.
"""

import random

import pytest
import torch
from backends import LIMIT, cases, error, run, tolerances
from catalogue import BETWEEN, DIVERGENCES
from covering import covering, grid

ALPHAS = [-5.0, -3.0, -1.0, 0.0, 0.5, 0.99999, 1.0, 1.00001, 1.5, 3.0, 5.0]
LAMS = [1e-6, 0.01, 0.1, 0.5, 0.99, 0.0, 1.0]
SETTINGS = {
    "divergence": DIVERGENCES,
    "between": BETWEEN,
    "alpha": [*ALPHAS, [-5.0, 1.0, 0.5, 0.99999, 3.0, -1.0, 1.5]],
    "lam": [*LAMS, [0.1, 0.0, 0.5, 1.0, 0.01, 0.99, 0.3]],
}
CALLS = {
    "student": ["logits", "hidden"],
    "teacher": ["logits", "hidden", "topk", "two", "two topk"],
    "shape": [(7, 29), (7, 1), (7, 2), (1, 29), (0, 29), (7, 257), (5, 1031)],
    "spread": [2.0, 4.0],
    "temperature": [1.0, 1.8],
    "mask": [None, "mask", "mask and weights"],
    "labels": [False, True],
    "detach": [False, True],
    "sum": [False, True],
    "reduction": ["mean", "sum"],
    "denominator": [None, 11],
    "memory_mb": [1e-6, 0.02, 128.0],
    "metrics": [False, True],
}
OWN = {
    "chunked": {"dtype": [torch.float64, torch.float32, torch.bfloat16]},
    "fused": {"dtype": [torch.float32, torch.bfloat16], "teacher": ["logits", "hidden", "topk"]},
}
"""What each backend is asked for: the fused ones compute in float32, with one teacher."""
SAMPLE = {backend: covering(SETTINGS | CALLS | own, seed=1) for backend, own in OWN.items()}


def check(backend, case):
    wanted = run(case, "naive", torch.float64)
    found = run(case, backend, case["dtype"])
    assert found.backend == backend
    assert all(part.isfinite().all() for part in (wanted.loss, *wanted.gradients))
    limit = LIMIT[case["dtype"]]
    assert found.loss >= 0
    assert error(found.loss, wanted.loss) <= limit
    sure = case["lam"] != 1e-6 or case["dtype"] == torch.float64
    bounds = tolerances(case, wanted.gradients) if sure else [torch.inf] * len(wanted.gradients)
    # A gradient is a difference of parts as large as D: where it is below a hundredth, what is left is D's rounding.
    least = max(1e-3, wanted.loss.item() / 100)
    for slope, reference, bound in zip(found.gradients, wanted.gradients, bounds, strict=True):
        assert slope.dtype == case["dtype"]
        assert slope.isfinite().all()
        assert error(slope, reference, least) <= bound
    assert found.metrics.keys() == wanted.metrics.keys() or case["shape"][0] == 0
    for name, metric in found.metrics.items():
        torch.testing.assert_close(metric.double(), wanted.metrics[name].double(), rtol=limit, atol=limit / 10)


@pytest.mark.parametrize(("backend", "case"), cases(SAMPLE))
def test_it_is_naive_wherever_two_settings_meet(backend, case):
    check(backend, case)


@pytest.mark.full
@pytest.mark.parametrize("name", DIVERGENCES, ids=str)
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize(("backend", "calls"), cases({b: [covering(CALLS | own, seed=2)] for b, own in OWN.items()}))
def test_it_is_naive_over_the_whole_grid(backend, calls, name, between):
    """Every divergence, pair, α and λ, each with calls drawn from those in which every two options meet."""
    drawn = random.Random(f"{name} {between}")
    for settings in grid(SETTINGS | {"divergence": [name], "between": [between]}):
        check(backend, settings | drawn.choice(calls))


def test_the_sample_is_small_and_meets_every_pair():
    axes = SETTINGS | CALLS | OWN["chunked"]
    assert len(SAMPLE["chunked"]) < 350
    for first in axes:
        for second in axes:
            met = {(id(row[first]), id(row[second])) for row in SAMPLE["chunked"]}
            every = {(id(a), id(b)) for a in axes[first] for b in axes[second] if first != second or a is b}
            assert every <= met
