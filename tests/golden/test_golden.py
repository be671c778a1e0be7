"""Value and gradient against numbers that other code computed: the own file, and the one beside the repository.

The metric is max|error| / max(max|reference|, 1e-3): 1e-8 in float64; 1e-3 in float32, on cases with |value| ≤ 200 and
|gradient| ≤ 50.
"""

import json
from itertools import islice

import make_reference
import pytest
import torch

from amidkd.maths import Objective, divergence, log_mixture, log_mixture_of, value_and_gradient

OWN = json.loads(make_reference.FILE.read_text(encoding="utf-8"))
LIMITS = {torch.float64: 1e-8, torch.float32: 1e-3}
DTYPES = pytest.mark.parametrize("dtype", LIMITS, ids=str)


def log_probs(logits, dtype):
    values = [-torch.inf if z is None else z for z in logits]
    return torch.tensor([values], dtype=torch.float64).to(dtype)


def error(found, wanted):
    wanted = torch.tensor(wanted, dtype=torch.float64)
    return ((found.double().squeeze(0) - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)).item()


def errors(objective, teachers, logits, dtype, value, gradient):
    """Of the value, of autograd's gradient and of the closed form's."""
    log_p = [log_probs(z, dtype).log_softmax(-1) for z in teachers]
    teacher = log_p if objective.teacher_weights is not None else log_p[0]
    z = log_probs(logits, dtype).requires_grad_()
    found = objective(teacher=teacher, student=z.log_softmax(-1))
    (slope,) = torch.autograd.grad(found.sum(), z)
    closed, closed_slope = value_and_gradient(objective, teacher=teacher, student=z.detach().log_softmax(-1))
    assert found.dtype == slope.dtype == closed_slope.dtype == dtype
    return {
        "value": error(found.detach(), value),
        "closed value": error(closed, value),
        "autograd": error(slope, gradient),
        "closed": error(closed_slope, gradient),
    }


def in_range(value, gradient, dtype):
    return dtype == torch.float64 or (abs(value) <= 200 and max(map(abs, gradient)) <= 50)


CHECKED = [
    (n, dtype) for n, case in enumerate(OWN) for dtype in LIMITS if in_range(case["value"], case["gradient"], dtype)
]


def test_own_file_is_nearly_all_within_range():
    assert len(CHECKED) >= 2 * len(OWN) - 3


@pytest.mark.parametrize(("number", "dtype"), CHECKED, ids=str)
def test_own_file(number, dtype):
    case = OWN[number]
    objective = Objective(
        divergence=divergence(case["divergence"], **case["parameters"]),
        between=case["between"],
        alpha=case["alpha"],
        lam=case["lam"],
        detach_assistant=case["detach_assistant"],
        teacher_weights=case["teacher_weights"],
    )
    found = errors(objective, case["teacher_logits"], case["student_logits"], dtype, case["value"], case["gradient"])
    assert max(found.values()) < LIMITS[dtype], found


def test_own_file_is_what_its_script_writes():
    for case, stored in islice(zip(make_reference.cases(), OWN, strict=True), 0, None, 17):
        assert make_reference.reference(case) == stored


@pytest.fixture(scope="module")
def theirs(shared):
    return json.loads((shared / "golden" / "reference.json").read_text(encoding="utf-8"))


@DTYPES
def test_objectives_of_the_shared_file(theirs, dtype):
    checked = 0
    for number, case in enumerate(theirs["objectives"]):
        if not in_range(case["value"], case["grad_student_logits"], dtype):
            continue
        objective = Objective(
            divergence=divergence(case["divergence"], **case["params"]),
            between=case["between"],
            alpha=case["alpha"],
            lam=case["lam"],
        )
        wanted = case["value"], case["grad_student_logits"]
        found = errors(objective, [case["teacher_logits"]], case["student_logits"], dtype, *wanted)
        assert max(found.values()) < LIMITS[dtype], (number, found)
        checked += 1
    assert checked >= 230


@DTYPES
def test_mixtures_of_the_shared_file(theirs, dtype):
    for case in theirs["mixtures"]:
        sources = [log_probs(z, dtype).log_softmax(-1) for z in case["logits"]]
        limit = 1e-10 if dtype == torch.float64 else 1e-6
        log_r = log_mixture_of(sources, weights=case["weights"], alpha=case["alpha"])
        assert error(log_r, case["log_r"]) < limit
        if len(sources) == 2:
            log_r = log_mixture(*sources, alpha=case["alpha"], lam=case["weights"][0])
            assert error(log_r, case["log_r"]) < limit
