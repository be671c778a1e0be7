"""Weights searched: the known optimum of mixtures whose parts are known."""

import sys

import pytest
import torch
from table_teacher import Table, V, table

from amidkd.config import EnsembleTeacher as EnsembleConfig
from amidkd.data import Example
from amidkd.errors import SettingError
from amidkd.maths.mixture import log_mixture_of
from amidkd.teachers.ensemble import EnsembleTeacher, make_ensemble
from amidkd.teachers.ensemble.search import minimise_on_simplex


def ensemble(members: list[Table]) -> EnsembleTeacher:
    section = EnsembleConfig(
        teachers=[{"model": str(place)} for place in range(len(members))],
        weights="search",
        search={"rows": 400, "iterations": 60},
    )
    return make_ensemble(section, members)


def written(log_p: torch.Tensor, count: int = 400) -> list[Example]:
    """Rows of pairs, whose second token is drawn from the table's row of the first."""
    draw = torch.Generator().manual_seed(1)
    first = torch.randint(0, V, (count,), generator=draw)
    label = torch.multinomial(log_p.exp()[first][:, :V], 1, generator=draw)[:, 0]
    return [
        Example(pair, (False, True), row) for row, pair in enumerate(zip(first.tolist(), label.tolist(), strict=True))
    ]


def test_a_good_teacher_beside_noise_counts_for_all() -> None:
    good, noise = table(0), table(1)
    teacher = ensemble([noise, good])
    with pytest.raises(SettingError, match="choose_weights"):
        teacher.signal(None)  # type: ignore[arg-type]
    weights = teacher.choose_weights(written(good.logits.log_softmax(-1)), pad_id=0, batch_size=64)
    assert weights[1] > 0.95
    assert teacher.weights == pytest.approx(weights)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 1.0])
def test_the_optimum_of_a_mixture_is_found(alpha: float) -> None:
    """Text of a mixture of two; the found weights beat a fine grid, at the α that they were searched at."""
    members = [table(0), table(1)]
    log_ps = [member.logits.log_softmax(-1) for member in members]
    rows = written(log_mixture_of(log_ps, weights=[0.7, 0.3], alpha=alpha))
    weights = ensemble(members).choose_weights(rows, pad_id=0, batch_size=64, alpha=alpha)
    first, label = (torch.tensor([row.tokens[place] for row in rows]) for place in (0, 1))

    def nll(share: float) -> float:
        mixed = log_mixture_of([log_p[first] for log_p in log_ps], weights=[share, 1 - share], alpha=alpha)
        return -mixed.gather(-1, label[:, None]).mean().item()

    assert nll(weights[0]) <= min(nll(share / 100) for share in range(101)) + 1e-6
    assert weights[0] == pytest.approx(0.7, abs=0.12)


def test_truncated_teachers_are_judged_on_the_same_events() -> None:
    good, noise = table(0), table(1, k=3)
    weights = ensemble([good, noise]).choose_weights(written(good.logits.log_softmax(-1)), pad_id=0, batch_size=64)
    assert weights[0] > 0.9


def test_a_large_vocabulary_is_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged to the likeliest six of each and a tail, the weights stay close to those of the whole."""
    members = [table(0), table(1)]
    rows = written(log_mixture_of([member.logits.log_softmax(-1) for member in members], weights=[0.6, 0.4], alpha=0.5))
    whole = ensemble(members).choose_weights(rows, pad_id=0, batch_size=64, alpha=0.5)
    monkeypatch.setattr("amidkd.teachers.ensemble.search._WHOLE", 1)
    monkeypatch.setattr("amidkd.teachers.ensemble.search._KEPT", 6)
    merged = ensemble(members).choose_weights(rows, pad_id=0, batch_size=64, alpha=0.5)
    assert merged[0] == pytest.approx(whole[0], abs=0.05)
    assert merged != whole


def test_the_search_is_repeatable_and_never_worse_than_a_corner() -> None:
    def loss(weights: list[float]) -> float:
        return 0.0 if weights == [0.0, 0.0, 1.0] else 1.0 + weights[0]

    assert minimise_on_simplex(loss, 3, iterations=3, seed=0) == ([0.0, 0.0, 1.0], 0.0)
    smooth = [minimise_on_simplex(lambda w: (w[0] - 0.3) ** 2, 2, iterations=50, seed=1) for _ in range(2)]
    assert smooth[0] == smooth[1]
    assert smooth[0][0] == pytest.approx([0.3, 0.7], abs=1e-3)


def test_what_cannot_be_searched_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    never = Table(torch.full((V, V), -torch.inf).index_fill(1, torch.tensor([0]), 0.0).double())
    with pytest.raises(SettingError, match="has probability 0"):
        ensemble([never, never]).choose_weights([Example((1, 2), (False, True), 0)], pad_id=0, batch_size=4)
    with pytest.raises(SettingError, match="no held-out row has a supervised token"):
        ensemble([never, never]).choose_weights([Example((1, 2), (False, False), 0)], pad_id=0, batch_size=4)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(SettingError, match=r"amidkd\[ensemble\]"):
        ensemble([never, never]).choose_weights([], pad_id=0, batch_size=4)
