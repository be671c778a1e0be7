"""examples/toy.py: which α covers both modes of a teacher, and which seeks one."""

import importlib.util
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def toy(repository) -> Any:
    spec = importlib.util.spec_from_file_location("toy", repository / "examples" / "toy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_alpha_leads_from_one_mode_to_both_or_back(toy, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(toy, "ALPHAS", (-5.0, -1.0, 1.0))
    monkeypatch.setattr(toy, "PLACES", torch.linspace(-6.0, 6.0, 61, dtype=torch.float64))
    picture = tmp_path / "folder" / "toy.svg"
    forward, reverse, *others = toy.main([str(picture)], steps=120)
    first, second = others[:3], others[3:]
    assert {fit.objective for fit in first} == {"KL(teacher‖assistant)"}
    assert {fit.objective for fit in second} == {"KL(student‖assistant)"}
    wide, narrow = forward.width, reverse.width
    assert wide > 2 * narrow
    # With the teacher first a small α seeks and a large one covers; with the student first it is the other way round.
    assert first[0].width < 1.2 * narrow
    assert first[-1].width > 0.9 * wide
    assert second[0].width > 0.9 * wide
    assert second[-1].width < 1.2 * narrow
    # What each plain divergence minimises is lowest in its own fit.
    assert forward.forward <= min(fit.forward for fit in others) + 1e-3
    assert reverse.reverse <= min(fit.reverse for fit in others) + 1e-3
    # An independent value of the same number.
    p, q = toy.two_modes(), forward.log_q
    assert forward.forward == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-9)
    printed = capsys.readouterr().out
    assert printed.count("covers both modes") >= 3
    assert printed.count("seeks one mode") >= 3
    assert picture.read_text().count("α = −5") == 1


def test_the_gradient_that_it_follows_is_that_of_autograd(toy) -> None:
    from amidkd.maths import Objective
    from amidkd.maths.gradient import value_and_gradient

    log_p = toy.two_modes()
    centre, log_width = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.3, 0.4))
    objective = Objective(alpha=-2.0, lam=0.1)
    objective(teacher=log_p[None], student=toy.bump(centre, log_width.exp())).sum().backward()
    with torch.no_grad():
        student = toy.bump(centre, log_width.exp())
        _, slope = value_and_gradient(objective, teacher=log_p[None], student=student)
        distance = (toy.PLACES - centre) / log_width.exp()
        torch.testing.assert_close((slope * distance).sum(-1) / log_width.exp(), centre.grad)
        torch.testing.assert_close((slope * distance**2).sum(-1), log_width.grad)
