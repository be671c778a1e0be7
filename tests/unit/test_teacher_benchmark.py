"""The scripts behind the numbers of docs/choose/teacher.md: estimates without bias, the gradient, the tables."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.signals import Logits, TopK

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import teachers_runs
import teachers_samples
import teachers_tables
from teachers_world import stored_top_k


@pytest.fixture(scope="module")
def p() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(40, 50, generator=generator)).softmax(-1)


def test_every_store_keeps_to_the_bytes_of_top_k(p: torch.Tensor) -> None:
    stores = list(teachers_samples.stores(p, [4, 8]))
    assert [store.name for store in stores[:4]] == ["top_k", "samples", "samples, flatter", "top k/2 and samples"]
    for store in stores:
        budget = teachers_samples.top_k_bytes(store.k)
        assert 0.8 * budget < store.bytes <= budget, store


def test_samples_have_no_bias(p: torch.Tensor) -> None:
    generator = np.random.default_rng(1)
    directions = torch.randn(50, 8, generator=torch.Generator().manual_seed(3))
    for store in teachers_samples.stores(p, [8]):
        if store.estimate is None:
            continue
        drawn = torch.stack([store.estimate(p, generator) @ directions for _ in range(400)])
        error = drawn.std(0) / 400**0.5
        # 320 numbers: none beyond five standard errors, up to what float16 rounds.
        assert ((drawn.mean(0) - p @ directions).abs() <= 5 * error + 1e-3).all(), store.name
        assert 0 < error.max() < 0.05


def test_slope_of_the_top_k_is_the_gradient_of_the_loss(p: torch.Tensor) -> None:
    logits = torch.randn(40, 50, generator=torch.Generator().manual_seed(2)).requires_grad_()
    objective = Objective(divergence=divergence("kl"), between="teacher||student")
    store = next(teachers_samples.stores(p, [6]))
    for teacher, kept in ((stored_top_k(p.log(), 6), teachers_samples.stored(store, p, None)), (Logits(p.log()), p)):
        loss = distillation_loss(
            student=Logits(logits), teacher=teacher, objective=objective, reduction="sum", backend="naive"
        ).loss
        (expected,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(teachers_samples.slope(kept, logits.detach()), expected, atol=1e-6, rtol=1e-5)


def test_stored_top_k_is_rounded_as_in_a_cache(p: torch.Tensor) -> None:
    top = stored_top_k(p.log(), 5)
    assert isinstance(top, TopK)
    assert torch.equal(top.ids, p.topk(5).indices)
    assert torch.equal(top.log_probs, top.log_probs.half().float())
    rest = 1 - p.topk(5).values.sum(-1)
    torch.testing.assert_close(top.log_tail.exp(), rest, atol=1e-6, rtol=1e-5)


def test_training_table_compares_at_equal_seed() -> None:
    rows = [
        {"world": "w", "store": store, "k": k, "bytes": None, "seed": seed, "kl_teacher_student": kl}
        | {"top1_agreement": 0.5}
        for store, k, seed, kl in (
            ("live", None, 1, 0.1),
            ("live", None, 2, 0.3),
            ("top_k", 4, 1, 0.2),
            ("top_k", 4, 2, 0.5),
        )
    ]
    live, top = teachers_tables.training_table(rows)
    assert live["kl_teacher_student"] == pytest.approx(0.2)
    assert top["kl_teacher_student, more than live"] == pytest.approx([0.15, 0.05])


def test_percentages() -> None:
    shown = [teachers_tables.percent(value) for value in (0.123, 0.01234, 0.00005678, -0.5, math.inf, math.nan, 0.0)]
    assert shown == ["12", "1.2", "0.0057", "−50", "∞", "–", "0"]
    assert teachers_tables.percent(0.004, sign=True) == "+0.40"


def test_ratios_and_curves_are_compared_within_a_round() -> None:
    def row(kind: str, turn: int, seconds: float, loss: float, **more: float) -> dict:
        made = {"world": "w", "kind": kind, "round": turn, "step_seconds": seconds, "cpu_seconds": 1.0, "steps": 10}
        return made | {"curve": [[5, 1.0], [10, loss]]} | more

    rows = [row("live", 0, 1.0, 0.5), row("live", 1, 4.0, 0.5)]
    rows += [row("served", turn, seconds, 0.6, waited=1.0, server=4.0) for turn, seconds in ((0, 0.5), (1, 1.0))]
    live, served = teachers_runs.by_kind(rows)
    assert live["ratio"] == 1
    assert live["largest_difference"] == 0
    assert live["waited"] is None
    assert served["ratio"] == pytest.approx(0.375)
    assert served["ratio_range"] == [0.25, 0.5]
    assert served["largest_difference"] == pytest.approx(0.1)
    assert served["largest_relative_difference"] == pytest.approx(0.2)
    assert served["waited"] == pytest.approx(0.1)
    assert served["hidden_part"] == pytest.approx(0.75)
