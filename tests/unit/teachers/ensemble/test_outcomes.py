"""Common outcomes: exact merging, against distributions merged by hand in float64."""

import pytest
import torch

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.maths.coarse import truncate
from amidkd.signals import Hidden, Logits, TopK
from amidkd.teachers.ensemble import common_outcomes

N, V = 6, 17


def log_probs(seed: int, width: int = V) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(N, width, generator=draw, dtype=torch.float64)).log_softmax(-1)


def top(log_p: torch.Tensor, k: int) -> TopK:
    return TopK(*truncate(log_p, k))


def spread(signal: TopK, kept: list[set[int]]) -> list[dict[int, float]]:
    """Row by row: the probability of each kept token, and under −1 that of everything else."""
    rows = []
    for ids, log_ps, tail, wanted in zip(
        signal.ids.tolist(), signal.log_probs.tolist(), signal.log_tail.tolist(), kept, strict=True
    ):
        row = {token: torch.tensor(value).exp().item() for token, value in zip(ids, log_ps, strict=True)}
        rest = torch.tensor(tail, dtype=torch.float64).exp().item()
        rest += sum(value for token, value in row.items() if token not in wanted)
        rows.append({**{token: row[token] for token in wanted}, -1: rest})
    return rows


def merged(log_p: torch.Tensor, kept: list[set[int]]) -> list[dict[int, float]]:
    rows = []
    for values, wanted in zip(log_p.exp().tolist(), kept, strict=True):
        rest = sum(value for token, value in enumerate(values) if token not in wanted)
        rows.append({**{token: values[token] for token in wanted}, -1: rest})
    return rows


def assert_same(found: list[dict[int, float]], wanted: list[dict[int, float]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


def ids_of(signal: TopK) -> list[set[int]]:
    return [{token for token in row if token < V} for row in signal.ids.tolist()]


def test_what_fits_is_handed_on() -> None:
    dense = (Logits(log_probs(0)), Logits(log_probs(1, V + 5)))
    assert common_outcomes(dense, vocab_size=V) == dense
    one = top(log_probs(0), 4)
    same = (one, TopK(one.ids.clone(), log_probs(1).gather(-1, one.ids)))
    assert common_outcomes(same, vocab_size=V) == same


def test_a_full_teacher_beside_a_truncated_one_is_merged_exactly() -> None:
    p, q = log_probs(0), log_probs(1, V + 5)
    short = top(p, 4)
    draw = torch.Generator().manual_seed(3)
    states = torch.randn(N, 3, generator=draw, dtype=torch.float64)
    hidden = Hidden(states, torch.randn(V + 2, 3, generator=draw, dtype=torch.float64), softcap=2.0)
    found = common_outcomes([Logits(q), short, hidden], vocab_size=V)
    capped = (2 * torch.tanh(states @ hidden.weight.T / 2))[:, :V].log_softmax(-1)
    kept = ids_of(short)
    for signal, full in zip(found, (q[:, :V].log_softmax(-1), p, capped), strict=True):
        assert isinstance(signal, TopK)
        assert torch.equal(signal.ids, found[1].ids)
        assert_same(spread(signal, kept), merged(full, kept))


def test_of_several_truncated_teachers_the_tokens_that_all_know_stay() -> None:
    p, q, r = log_probs(0), log_probs(1), log_probs(2)
    signals = [top(p, 7), top(q, 9), Logits(r)]
    found = common_outcomes(signals, vocab_size=V)
    kept = [one & other for one, other in zip(ids_of(signals[0]), ids_of(signals[1]), strict=True)]
    assert len({len(row) for row in kept}) > 1
    assert ids_of(found[0]) == kept
    for signal, full in zip(found, (p, q, r), strict=True):
        assert torch.equal(signal.ids, found[0].ids)
        assert_same(spread(signal, kept), merged(full, kept))


def test_tokens_beyond_the_vocabulary_are_in_no_tail() -> None:
    ids = torch.tensor([[V + 1, 2, 5]])
    signal = TopK(ids, torch.tensor([[0.4, 0.3, 0.2]]).log())
    other = TopK(torch.tensor([[5, 3, V + 2]]), torch.tensor([[0.5, 0.2, 0.2]]).log())
    found, _ = common_outcomes([signal, other], vocab_size=V)
    assert ids_of(found) == [{5}]
    assert_same(spread(found, [{5}]), [{5: 0.2, -1: 0.3 + 0.1}])


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 1.0])
@pytest.mark.parametrize("backend", ["naive", "chunked", "fused"])
def test_the_kernels_take_them(alpha: float, backend: str) -> None:
    """Value and gradient are those of the merged distributions, whose rows keep different numbers of tokens."""
    p, q, z = log_probs(0), log_probs(1), log_probs(5)
    signals = common_outcomes([top(p.float(), 7), top(q.float(), 6)], vocab_size=V)
    objective = Objective(divergence=divergence("kl"), alpha=alpha, lam=0.3, teacher_weights=(0.25, 0.75))
    student = z.float().requires_grad_()
    out = distillation_loss(
        student=Logits(student),
        teacher=list(signals),
        objective=objective,
        backend=backend,
        vocab_size=V,
        reduction="sum",
        metrics=True,
    )
    out.loss.backward()
    assert student.grad is not None
    exact = z.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row, kept in enumerate(ids_of(signals[0])):
        sides = [by_hand(log_p[row], kept) for log_p in (p, q, exact.log_softmax(-1))]
        total = total + objective(teacher=sides[:2], student=sides[2])
    total.backward()
    assert out.loss.item() == pytest.approx(total.item(), rel=1e-5)
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)
    assert all(value.isfinite() for value in out.metrics.values())


def by_hand(log_p: torch.Tensor, kept: set[int]) -> torch.Tensor:
    others = sorted(set(range(V)) - kept)
    return torch.cat([log_p[sorted(kept)], log_p[others].exp().sum().log()[None]])


def test_no_common_token_leaves_the_tail_alone() -> None:
    one = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.2]]).log(), torch.tensor([0.3]).log())
    other = TopK(torch.tensor([[2, 3]]), torch.tensor([[0.6, 0.3]]).log(), torch.tensor([0.1]).log())
    found = common_outcomes([one, other], vocab_size=V)
    for signal in found:
        assert (signal.ids == V).all()
        assert signal.log_tail.exp().item() == pytest.approx(1.0)
