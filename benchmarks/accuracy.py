"""How far each method is from float64: the oracle backend on the same numbers, cast up exactly."""

import math
from collections.abc import Callable, Iterator

import peers
import torch
from context import Context
from linear import heads
from loss import logits
from timing import Row, reason
from torch import Tensor

__all__ = ["SITUATIONS", "run"]

SITUATIONS = {
    "ordinary": "logits of standard deviation 3",
    "near": "student = teacher + 1e-4 of noise",
    "extreme": "logits of standard deviation 1000, the student about to choose between its token and the teacher's",
}


def _inputs(situation: str, context: Context, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    tokens, vocabulary = context.sizes.accuracy_tokens, context.sizes.vocabulary
    student, teacher = logits(tokens, vocabulary, dtype=torch.float32, device=context.device, seed=context.seed)
    student = student.detach()
    if situation == "near":
        generator = torch.Generator(context.device).manual_seed(context.seed + 1)
        student = teacher + 1e-4 * torch.randn(student.shape, device=context.device, generator=generator)
    elif situation == "extreme":
        generator = torch.Generator(context.device).manual_seed(context.seed + 1)
        student = 1000 * torch.randn(student.shape, device=context.device, generator=generator)
        teacher = teacher * (1000 / 3)
        # The student hesitates about the teacher's token: were they far apart, no gradient would be left to compare.
        student.scatter_(-1, teacher.argmax(-1, keepdim=True), student.amax(-1, keepdim=True) - 0.5)
    return student.to(dtype), teacher.to(dtype)


def _error(found: Tensor, right: Tensor) -> float:
    """Largest error, relative to the largest right value; NaN where anything is."""
    return float((found.double() - right).abs().max() / right.abs().max())


def _figures(method: peers.Method, student: Tensor, teacher: Tensor, right: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Errors of the values and of the gradient; the smallest value, which must not be negative."""
    with torch.no_grad():
        values = method.values(student, teacher)
    leaf = student.clone().requires_grad_()
    method.loss(leaf, teacher).backward()
    return {
        "value error": _error(values, right[0]),
        "gradient error": _error(leaf.grad * len(student), right[1]),
        "smallest value": float(values.min()),
    }


def _right(case: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    leaf = student.double().requires_grad_()
    values = peers.oracle(case).values(leaf, teacher.double())
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def _row(context: Context, group: str, method, measure: Callable[[], dict[str, float]]) -> Row:
    name = method.name
    if isinstance(method, peers.Missing):
        return Row("accuracy", context.heap, group, name, missing=method.why)
    try:
        figures = measure()
    except Exception as error:  # Whatever someone else's code raises is its row's answer.
        return Row("accuracy", context.heap, group, name, missing=reason(error))
    broken = [what for what, figure in figures.items() if not math.isfinite(figure)]
    note = f"not finite: {', '.join(broken)}" if broken else ""
    return Row("accuracy", context.heap, group, name, rounds=[figures["gradient error"]], figures=figures, note=note)


def run(context: Context) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups, without a yardstick, and their rows."""
    half = torch.bfloat16
    for situation, dtype in [*((name, torch.float32) for name in SITUATIONS), ("ordinary", half)]:
        inputs = _inputs(situation, context, dtype)
        for case in peers.cases():
            yield _given_logits(context, situation, case, *inputs)
    for dtype in (torch.float32, half):
        yield _from_hidden(context, dtype)


def _given_logits(
    context: Context, situation: str, case: str, student: Tensor, teacher: Tensor
) -> tuple[str, str, list[Row]]:
    right = _right(case, student, teacher)
    group = f"{situation} {case} {str(student.dtype).removeprefix('torch.')}"
    methods = [*peers.given_logits(case, context.device), peers.oracle(case)]
    rows = [
        _row(context, group, method, lambda method=method: _figures(method, student, teacher, right))
        for method in methods
    ]
    return group, "", rows


def _from_hidden(context: Context, dtype: torch.dtype) -> tuple[str, str, list[Row]]:
    sizes = context.sizes
    made = {"device": context.device, "seed": context.seed}
    inputs = heads(sizes.accuracy_tokens, sizes.vocabulary, 64, 128, dtype=dtype, **made)
    parts = (inputs.states, inputs.weight, inputs.teacher_states, inputs.teacher_weight)
    wide = [part.detach().double() for part in parts]
    wide[0].requires_grad_()
    wide[1].requires_grad_()
    values = peers.oracle("jsd").values(wide[0] @ wide[1].T, wide[2] @ wide[3].T)
    right = torch.autograd.grad(values.mean(), wide[:2])

    def figures(method: peers.LinearMethod) -> dict[str, float]:
        inputs.states.grad = inputs.weight.grad = None
        loss = method.loss(inputs)
        loss.backward()
        found = (inputs.states.grad, inputs.weight.grad)
        return {
            "value error": _error(loss.detach(), values.detach().mean()),
            "gradient error": max(_error(a, b) for a, b in zip(found, right, strict=True)),
            "smallest value": float(loss.detach()),
        }

    group = f"from hidden states jsd {str(dtype).removeprefix('torch.')}"
    methods = peers.given_hidden(context.device, may_compile=False)
    rows = [
        _row(context, group, method, lambda method=method: figures(method))
        for method in methods
        if method.name != "textbook" and "α" not in method.name
    ]
    return group, "", rows
