"""Several teachers: what is asked of whom, and that the loss is the flat mixture's."""

from typing import Any

import pytest
import torch
from table_teacher import Table, V, table

from amidkd.config import EnsembleTeacher as EnsembleConfig
from amidkd.data import Example, Row, Sequences, collate, idle
from amidkd.errors import SettingError
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective
from amidkd.signals import Logits, TopK
from amidkd.teachers import Grouped, Teacher
from amidkd.teachers.ensemble import EnsembleTeacher, make_ensemble, staying


def ensemble(members: list[Table], seed: int = 0, **settings: Any) -> EnsembleTeacher:
    names = [{"model": f"m{place}", "name": f"teacher-{place}"} for place in range(len(members))]
    return make_ensemble(EnsembleConfig(teachers=names, **settings), members, seed=seed)


def examples(count: int = 5) -> list[Example]:
    draw = torch.Generator().manual_seed(9)
    lengths = [3 + place % 3 for place in range(count)]
    tokens = [tuple(torch.randint(0, V, (length,), generator=draw).tolist()) for length in lengths]
    return [Example(ids, (False, *[True] * (len(ids) - 1)), row) for row, ids in enumerate(tokens)]


def batch(count: int = 5) -> Sequences:
    return collate(examples(count), pad_id=0)


def rows(*teachers: str | int | None) -> list[Row]:
    return [Row(place, f"rows, line {place + 1}", prompt="a", teacher_id=name) for place, name in enumerate(teachers)]


def loss(said: Grouped, student: torch.Tensor, objective: Objective) -> torch.Tensor:
    (group,) = said.groups
    return distillation_loss(
        student=Logits(student),
        teacher=list(group.signals),
        objective=Objective(alpha=objective.alpha, lam=objective.lam, teacher_weights=group.weights),
        vocab_size=V,
    ).loss


@pytest.mark.parametrize("alpha", [-3.0, -1.0, 0.5, 1.0])
@pytest.mark.parametrize("weights", ["uniform", [1, 0, 3], [2.0, 1.0, 1.0]])
def test_the_loss_is_that_of_the_flat_mixture(alpha: float, weights: Any) -> None:
    """Of teachers with other padded widths, in float64; the student's share stays 1 − λ."""
    members = [table(0), table(1, width=V + 6), table(2, width=V + 1)]
    teacher = ensemble(members, weights=weights)
    assert isinstance(teacher, Teacher)
    sequences = batch()
    student = torch.randn(sequences.token_count(), V, dtype=torch.float64)
    objective = Objective(alpha=alpha, lam=0.3)
    found = loss(teacher.signal(sequences), student, objective)
    shares = [1.0, 1.0, 1.0] if weights == "uniform" else weights
    wanted = Objective(alpha=alpha, lam=0.3, teacher_weights=tuple(share / sum(shares) for share in shares))
    before = sequences.tokens_BT[sequences.predicts_BT()]
    log_ps = [member.logits[before][:, :V].log_softmax(-1) for member in members]
    torch.testing.assert_close(found, wanted(teacher=log_ps, student=student.log_softmax(-1)).mean())
    assert [len(member.asked) for member in members] == [int(share > 0) for share in shares]


def test_by_row_each_token_has_its_rows_teacher_alone() -> None:
    members = [table(0), table(1), table(2, k=4)]
    teacher = ensemble(members, weights="by_row")
    with pytest.raises(SettingError, match="call set_rows"):
        teacher.signal(batch())
    teacher.set_rows(rows("teacher-1", 0, "0", "teacher-2", 2))
    sequences = batch()
    teacher.expect([sequences])
    said = teacher.signal(sequences)
    whose = [1, 0, 0, 2, 2]
    own = [table(0).signal(sequences), table(1).signal(sequences), table(2, k=4).signal(sequences)]
    member_N = torch.tensor(whose)[sequences.sequence_N()]
    for number, group in enumerate(said.groups):
        place_n = (member_N == number).nonzero()[:, 0]
        assert torch.equal(group.place_n, place_n)
        assert group.weights == (1.0,)
        (signal,) = group.signals
        if isinstance(signal, TopK):
            assert torch.equal(signal.ids, own[number].ids[place_n])
            assert torch.equal(signal.log_probs, own[number].log_probs[place_n])
        else:
            assert torch.equal(signal.logits, own[number].logits[place_n])
        (asked,), (expected,) = members[number].asked, members[number].expected
        assert asked.rows_B.tolist() == [row for row, name in enumerate(whose) if name == number]
        assert all(torch.equal(tensor, expected.as_batch()[name]) for name, tensor in asked.as_batch().items())


def test_by_row_idle_rows_teach_nothing() -> None:
    teacher = ensemble([table(0), table(1)], weights="by_row")
    teacher.set_rows(rows(1, 1))
    some = examples(2)
    said = teacher.signal(collate([some[0], idle(some[1])], pad_id=0))
    assert [group.place_n.tolist() for group in said.groups] == [[0, 1]]
    (group,) = teacher.signal(collate([idle(some[0])], pad_id=0)).groups
    assert group.signals[0].logits.shape[0] == 0
    with pytest.raises(SettingError, match="row 2 is none of those"):
        teacher.signal(batch(3))


@pytest.mark.parametrize("name", [None, "teacher-2", 2, -1])
def test_a_row_without_a_teacher_is_named(name: Any) -> None:
    with pytest.raises(SettingError, match=r"rows, line 2: .*teacher_id.*0: teacher-0, 1: teacher-1"):
        ensemble([table(0), table(1)], weights="by_row").set_rows(rows(0, name))


def test_dropping_hangs_on_seed_and_step_and_leaves_one() -> None:
    drawn = [staying([0, 1, 2], drop=0.6, seed=4, step=step) for step in range(4000)]
    assert drawn == [staying([0, 1, 2], drop=0.6, seed=4, step=step) for step in range(4000)]
    assert drawn != [staying([0, 1, 2], drop=0.6, seed=5, step=step) for step in range(4000)]
    assert min(map(len, drawn)) == 1
    # Each stays with probability 0.4, and as the last one with (0.6³)/3.
    for member in range(3):
        share = sum(member in kept for kept in drawn) / len(drawn)
        assert share == pytest.approx(0.4 + 0.6**3 / 3, abs=0.035)


def test_those_left_out_of_a_step_are_not_asked_and_the_others_weights_sum_to_one() -> None:
    members = [table(0), table(1), table(2)]
    teacher = ensemble(members, weights=[1, 2, 5], drop=0.5, seed=3)
    sizes = set()
    for step in range(12):
        for member in members:
            member.asked, member.expected = [], []
        teacher.begin_step(step)
        teacher.expect([batch()])
        (group,) = teacher.signal(batch()).groups
        kept = staying([0, 1, 2], drop=0.5, seed=3, step=step)
        total = sum((1, 2, 5)[number] for number in kept)
        assert group.weights == pytest.approx([(1, 2, 5)[number] / total for number in kept])
        for number, member in enumerate(members):
            assert len(member.asked) == len(member.expected) == int(number in kept)
        sizes.add(len(kept))
    assert sizes == {1, 2, 3}


def test_a_truncated_member_brings_all_to_its_outcomes() -> None:
    members = [table(0), table(1, k=3)]
    (group,) = ensemble(members).signal(batch()).groups
    full, short = group.signals
    assert isinstance(full, TopK)
    assert torch.equal(full.ids, short.ids)
    student = torch.randn(len(full.ids), V, dtype=torch.float64)
    assert loss(Grouped((group,)), student, Objective(alpha=-1.0, lam=0.5)).isfinite()


def test_the_fingerprint_is_of_all_that_decides() -> None:
    members = [table(0), table(1)]
    settings: list[dict[str, Any]] = [{}, {"weights": [1, 2]}, {"weights": "by_row"}, {"drop": 0.3}]
    found = [ensemble(members, **each).fingerprint() for each in settings]
    found += [ensemble(members, drop=0.3, seed=1).fingerprint(), ensemble([table(0), table(2)]).fingerprint()]
    assert len(set(found)) == len(found)
    assert found[0] == ensemble(members).fingerprint()


def test_closing_closes_all() -> None:
    members = [table(0), table(1)]
    ensemble(members).close()
    assert all(member.closed for member in members)
