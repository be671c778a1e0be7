import pytest
import torch

from amidkd.config import ObjectiveConfig
from amidkd.maths import Objective, WeightedSum
from amidkd.training import ScheduledObjective, objective_at
from amidkd.training.objective import learns_through_assistant

ADAPTIVE = {"kind": "adaptive", "start": 0.4, "rate": 0.3, "smoothing": 0.5}


def test_schedules_reach_their_ends_at_the_first_and_the_last_step() -> None:
    config = ObjectiveConfig.model_validate(
        {
            "alpha": {"kind": "linear", "start": 1, "end": -3},
            "lam": {"kind": "piecewise", "points": [(0, 0.5), (1, 0.1)]},
        }
    )
    scheduled = ScheduledObjective(config, steps=5)
    assert [scheduled.at(step).alpha for step in range(5)] == [1, 0, -1, -2, -3]
    assert [round(scheduled.at(step).lam, 9) for step in range(5)] == [0.5, 0.4, 0.3, 0.2, 0.1]
    assert scheduled.settings(2) == {"alpha": -1.0, "lam": pytest.approx(0.3)}
    assert ScheduledObjective(config, steps=1).at(0).alpha == 1
    assert objective_at(config, 0.5).alpha == -1


def test_every_setting_reaches_the_objective() -> None:
    config = ObjectiveConfig.model_validate(
        {
            "divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7},
            "between": "student||assistant",
            "alpha": -3,
            "lam": 0.7,
            "detach_assistant": True,
        }
    )
    made = ScheduledObjective(config, steps=3).at(1)
    assert isinstance(made, Objective)
    assert (made.between, made.alpha, made.lam, made.detach_assistant) == ("student||assistant", -3, 0.7, True)
    log_p, log_q = (torch.randn(4, 6, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    kl = Objective(between="student||assistant", alpha=-3.0, lam=0.7)
    assert not torch.allclose(made(teacher=log_p, student=log_q), kl(teacher=log_p, student=log_q))


def test_sums_keep_their_weights() -> None:
    config = ObjectiveConfig.model_validate(
        {"terms": [{"weight": 0.3}, {"weight": 0.7, "between": "teacher||student"}]}
    )
    scheduled = ScheduledObjective(config, steps=3)
    made = scheduled.at(0)
    assert isinstance(made, WeightedSum)
    assert [(weight, term.between) for weight, term in made.terms] == [
        (0.3, "teacher||assistant"),
        (0.7, "teacher||student"),
    ]
    # α and λ of a term without an assistant mean nothing.
    assert set(scheduled.settings(0)) == {"alpha", "lam"}


def test_state_of_a_schedule_that_follows_the_loss() -> None:
    config = ObjectiveConfig.model_validate({"lam": ADAPTIVE})
    first = ScheduledObjective(config, steps=20)
    losses = [3.0, 2.5, 2.6, 1.9, 1.5, 1.4, 1.3, 1.1]
    for step, loss in enumerate(losses[:4]):
        first.observe(step, loss)
    second = ScheduledObjective(config, steps=20)
    second.load_state(first.state())
    for step, loss in enumerate(losses[4:], start=4):
        for scheduled in (first, second):
            scheduled.observe(step, loss)
        assert first.at(step).lam == second.at(step).lam > 0.4
    fresh = ScheduledObjective(config, steps=20)
    assert fresh.at(7).lam != first.at(7).lam


@pytest.mark.parametrize(
    ("settings", "through"),
    [
        ({}, True),
        ({"between": "assistant||teacher"}, True),
        ({"between": "teacher||student"}, False),
        ({"between": "student||assistant"}, False),
        ({"cross_entropy_weight": 0.1}, False),
        ({"terms": [{"weight": 1}, {"weight": 1, "between": "student||assistant"}]}, False),
    ],
)
def test_what_learns_through_the_assistant_alone(settings, through) -> None:
    assert learns_through_assistant(ObjectiveConfig.model_validate(settings)) is through
