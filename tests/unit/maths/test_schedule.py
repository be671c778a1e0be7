import json
import math

import pytest

from amidkd.maths.schedule import Adaptive, Constant, Cosine, Linear, Piecewise


@pytest.mark.parametrize("schedule", [Linear(start=1.0, end=-3.0), Cosine(start=1.0, end=-3.0)])
def test_ends_are_exact_and_the_way_is_monotone(schedule):
    values = [schedule.value(k / 50) for k in range(51)]
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(-3.0, abs=1e-15)
    assert values == sorted(values, reverse=True)
    assert schedule.value(0.5) == pytest.approx(-1.0)


def test_cosine_starts_and_ends_flat():
    cosine, linear = Cosine(start=0.0, end=1.0), Linear(start=0.0, end=1.0)
    assert cosine.value(0.1) == pytest.approx((1 - math.cos(0.1 * math.pi)) / 2)
    assert cosine.value(0.1) < linear.value(0.1)
    assert cosine.value(0.9) > linear.value(0.9)


def test_piecewise_meets_its_points_and_is_straight_between():
    schedule = Piecewise([(0.2, 1.0), (0.5, -1.0), (1.0, -3.0)])
    assert [schedule.value(x) for x in (0.0, 0.2, 0.5, 1.0)] == [1.0, 1.0, -1.0, -3.0]
    assert schedule.value(0.35) == pytest.approx(0.0)
    assert schedule.value(0.75) == pytest.approx(-2.0)
    assert Piecewise([(0.5, 2.0)]).value(0.9) == 2.0


@pytest.mark.parametrize("points", [[], [(0.5, 1.0), (0.5, 2.0)], [(0.5, 1.0), (0.2, 2.0)], [(1.5, 1.0)]])
def test_piecewise_refuses_points_out_of_order(points):
    with pytest.raises(ValueError, match=r"increases within \[0, 1\]"):
        Piecewise(points)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize(
    "schedule", [Constant(1.0), Linear(start=0.0, end=1.0), Piecewise([(0.0, 1.0)]), Adaptive()], ids=repr
)
def test_progress_must_be_a_fraction(schedule, progress):
    with pytest.raises(ValueError, match=r"progress must be within \[0, 1\]"):
        schedule.value(progress)


def test_plain_schedules_remember_nothing_and_say_so():
    schedule = Linear(start=0.0, end=1.0)
    schedule.observe(3.0, 0.5)
    assert schedule.state() == {}
    schedule.load_state({})
    with pytest.raises(ValueError, match="the saved schedule remembers value"):
        schedule.load_state(Adaptive().state())
    with pytest.raises(ValueError, match="an adaptive one remembers"):
        Adaptive().load_state({})


def rule(losses, *, start, end, rate, smoothing):
    """TAID's rule once more, written flat: the value after each loss."""
    value, momentum, values = start, 0.0, []
    for step, loss in enumerate(losses):
        floor = start + (end - start) * step / (len(losses) - 1)
        if step == 0:
            value = max(floor, value)
        else:
            momentum = smoothing * momentum + (1 - smoothing) * (losses[step - 1] - loss) / losses[step - 1]
            value = max(value, floor)
            value = min(end, value + rate / (1 + math.exp(-momentum)) * (1 - value))
        values.append(value)
    return values


@pytest.mark.parametrize(
    "settings",
    [
        {"start": 0.4, "end": 1.0, "rate": 5e-4, "smoothing": 0.99},
        {"start": 0.2, "end": 0.8, "rate": 0.1, "smoothing": 0.5},
    ],
)
def test_adaptive_follows_the_rule(settings):
    losses = [3.0, 2.5, 2.6, 1.0, 0.9, 0.9, 0.5, 0.4]
    schedule, found = Adaptive(**settings), []
    for step, loss in enumerate(losses):
        schedule.observe(loss, step / 7)
        found.append(schedule.value(step / 7))
    assert found == pytest.approx(rule(losses, **settings))
    assert found == sorted(found)
    assert found[-1] <= settings["end"]


def test_adaptive_has_the_papers_defaults_and_rises_faster_while_the_loss_falls():
    assert Adaptive().value(0.0) == 0.4
    assert Adaptive().value(1.0) == 1.0
    falling, flat = (Adaptive(rate=0.05, smoothing=0.5) for _ in range(2))
    for step in range(6):
        falling.observe(2.0**-step, 0.0)
        flat.observe(1.0, 0.0)
    assert falling.value(0.0) > flat.value(0.0) > 0.4


def test_adaptive_never_falls_below_the_line_nor_leaves_its_end():
    schedule = Adaptive(start=0.1, end=0.6, rate=1e-9)
    assert schedule.value(0.5) == pytest.approx(0.35)
    fast = Adaptive(start=0.1, end=0.6, rate=1.0, smoothing=0.0)
    for step in range(20):
        fast.observe(float(20 - step), 0.0)
    assert fast.value(0.0) == 0.6


def test_adaptive_resumes_exactly():
    losses = [3.0, 2.0, 2.5, 1.0, 1.1, 0.7]
    whole, first = Adaptive(rate=0.03), Adaptive(rate=0.03)
    for step, loss in enumerate(losses):
        whole.observe(loss, step / 10)
    for step, loss in enumerate(losses[:3]):
        first.observe(loss, step / 10)
    second = Adaptive(rate=0.03)
    second.load_state(json.loads(json.dumps(first.state())))
    for step, loss in enumerate(losses[3:], start=3):
        second.observe(loss, step / 10)
    assert second.state() == whole.state()
    assert second.value(0.55) == whole.value(0.55)


def test_adaptive_survives_a_loss_of_zero_and_refuses_nan():
    schedule = Adaptive()
    for loss in (1.0, 0.0, 0.0, 1.0):
        schedule.observe(loss, 0.0)
    assert math.isfinite(schedule.value(0.0))
    before = schedule.state()
    with pytest.raises(ValueError, match="finite"):
        schedule.observe(float("nan"), 0.1)
    assert schedule.state() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": 0.5, "end": 0.4}, "0 ≤ start ≤ end ≤ 1"),
        ({"start": -0.1}, "0 ≤ start ≤ end ≤ 1"),
        ({"rate": 0.0}, "rate must be above 0; got 0.0"),
        ({"smoothing": 1.0}, r"smoothing must be in \[0, 1\); got 1.0"),
        ({"rate": float("nan")}, "rate must be a finite number"),
    ],
)
def test_adaptive_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**settings)
