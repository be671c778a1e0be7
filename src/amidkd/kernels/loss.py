"""``distillation_loss``: checks one call, chooses a backend, and says which."""

from dataclasses import dataclass

import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.kernels.block import RowKernel
from amidkd.kernels.choose import BACKENDS, Backend, available, check_backend, choose, describe
from amidkd.kernels.chunked import attach, chunked
from amidkd.kernels.heads import exact, sources
from amidkd.kernels.metrics import Metrics
from amidkd.kernels.naive import naive
from amidkd.kernels.prepare import check_constants, check_denominator, check_reduction, prepare
from amidkd.kernels.sides import logits_dtype
from amidkd.kernels.task import Task
from amidkd.maths.objective import AnyObjective
from amidkd.maths.reduce import Reduction, mean_divisor, reduce
from amidkd.signals import Hidden, Logits, Signal

__all__ = ["BACKENDS", "LossOutput", "available", "check_backend", "describe", "distillation_loss"]


@dataclass(frozen=True)
class LossOutput:
    """What ``distillation_loss`` gives back.

    Args:
        loss: Scalar, or [N] with ``reduction="none"``.
        backend: What ran: ``"naive"``, ``"chunked"`` or ``"fused"``.
        metrics: Means over the tokens that count, as scalars on the loss's device; empty unless asked for.
    """

    loss: Tensor
    backend: str
    metrics: dict[str, Tensor]


def distillation_loss(
    *,
    student: Logits | Hidden,
    teacher: Signal | list[Signal] | None = None,
    objective: AnyObjective | None = None,
    mask: Tensor | None = None,
    weights: Tensor | None = None,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    cross_entropy_weight: float = 0.0,
    reduction: Reduction = "mean",
    denominator: float | Tensor | None = None,
    vocab_size: int | None = None,
    backend: Backend = "auto",
    memory_mb: float | None = None,
    metrics: bool = False,
) -> LossOutput:
    """The distillation loss of N tokens, with its gradient for the student.

    ℓ_n = D(objective; teacher_n, student_n) + cross_entropy_weight · (−log q_n(label_n))
    loss = Σ_n mask_n · weight_n · ℓ_n / denominator

    Masked tokens, and those of weight 0, are dropped before anything is computed from them. ``fused`` and ``chunked``
    compute the gradient together with the value, a few tokens at a time, so that logits of `Hidden` never exist whole;
    a second backward raises. ``naive`` holds everything and leaves the gradient to autograd. The teacher gets no
    gradient.

    Args:
        student: `Logits` [N, V] or `Hidden` [N, H] with its head.
        teacher: The same, or `TopK` [N, K]; or a list of them (truncated ones with the same ids, or none truncated).
            None, with ``objective`` None: cross-entropy alone.
        objective: Which divergence between which two of teacher, assistant and student; its α and λ may be tensors [N].
        mask: [N], nonzero where a token is supervised; None: all.
        weights: Factor of each token [N]; None: 1.
        temperature: Divides the logits of both sides in D, not in the cross-entropy; above 0. Must be 1 with `TopK`.
        labels: Token ids [N] for the cross-entropy; −100 for none.
        cross_entropy_weight: Factor of the cross-entropy, at least 0.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` [N]; the last has a gradient in ``naive`` alone.
        denominator: What the mean divides by; None: the number of unmasked tokens.
        vocab_size: The tokenizer's size: logits beyond it are padding, masked on both sides, and get no gradient.
            None: the smallest width among student and teachers.
        backend: ``"fused"``: a kernel of our own, C++ on the CPU, Triton on a GPU; float32 arithmetic, the divergences
            of the catalogue. ``"chunked"``: torch alone, on any device, any objective. ``"naive"``: the
            oracle. ``"auto"`` takes ``fused`` where it can, else ``chunked``, never ``naive``.
        memory_mb: Room for the temporaries of ``fused`` and ``chunked``, MiB, beside inputs and gradient; at least one
            token's. None: 128 on the CPU, 1024 elsewhere.
        metrics: Whether to measure, in the same pass and without gradient: ``divergence`` (D alone),
            ``kl_teacher_student``, ``kl_student_teacher``, ``entropy_teacher``, ``entropy_student`` and
            ``top1_agreement``; with an assistant ``entropy_assistant`` and ``responsibility`` (Σ_v p(v) ω(v)); with
            labels ``cross_entropy``; and the count ``tokens``. At the temperature, and on K + 1 outcomes with `TopK`.

    Returns:
        `LossOutput` with the loss, the backend that ran and the metrics. Float32, or float64 where an input is.

    Raises:
        SettingError: A setting, shape or combination that cannot be used. Labels are checked against the vocabulary
            where they are on the CPU; on another device torch's own index check stops the program.

    Example:
        >>> from amidkd.maths import Objective
        >>> z = torch.randn(4, 10, requires_grad=True)
        >>> out = distillation_loss(student=Logits(z), teacher=Logits(torch.randn(4, 10)), objective=Objective())
        >>> out.loss.backward()
        >>> out.backend in ("fused", "chunked")
        True
    """
    if memory_mb is not None and not memory_mb > 0:
        raise SettingError(f"memory_mb must be above 0; got {memory_mb}")
    check_reduction(reduction, denominator)
    task = prepare(
        student=student,
        teacher=teacher,
        objective=objective,
        mask=mask,
        weights=weights,
        temperature=temperature,
        labels=labels,
        cross_entropy_weight=cross_entropy_weight,
        vocab_size=vocab_size,
    )
    unmasked = torch.tensor(task.tokens) if mask is None else mask.bool().sum()
    check_denominator(denominator, unmasked)
    chosen, kernel = choose(task, backend, measured=metrics)
    measured = Metrics() if metrics else None
    divisor = None
    if reduction == "mean":
        divisor = mean_divisor(unmasked.to(task.device), denominator, dtype=task.dtype)
    with exact(task.device):
        if kernel is None:
            total = _reduced(
                task, naive(task, measured), mask=mask, weights=weights, reduction=reduction, divisor=divisor
            )
        else:
            total = _walked(
                task,
                measured,
                kernel=kernel,
                mask=mask,
                weights=weights,
                reduction=reduction,
                divisor=divisor,
                memory_mb=memory_mb,
            )
    found = {} if measured is None else measured.means(task.count, device=task.device)
    return LossOutput(loss=total, backend=chosen, metrics=found)


def _reduced(
    task: Task,
    values: Tensor,
    *,
    mask: Tensor | None,
    weights: Tensor | None,
    reduction: Reduction,
    divisor: Tensor | None,
) -> Tensor:
    """From the values of the tokens that count [n] to the loss."""
    spread = values if task.rows is None else values.new_zeros(task.tokens).index_copy(0, task.rows, values)
    total = reduce(spread, mask=mask, weights=weights, reduction="none" if reduction == "none" else "sum")
    return total if divisor is None else total / divisor


def _walked(
    task: Task,
    measured: Metrics | None,
    *,
    kernel: RowKernel,
    mask: Tensor | None,
    weights: Tensor | None,
    reduction: Reduction,
    divisor: Tensor | None,
    memory_mb: float | None,
) -> Tensor:
    """The loss from the walk over the tokens, with its gradient where there is one."""
    tensors = sources(task.student)
    learns = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    gradient = learns and torch.is_grad_enabled() and reduction != "none"
    if gradient:
        check_constants(task, weights)
    # Divided at once, a backward of 1 has nothing left to do; but a small gradient in float16 would underflow.
    early, late = (None, divisor) if logits_dtype(task.student, task.dtype) == torch.float16 else (divisor, None)
    values, collected = chunked(
        task, measured, memory_mb=memory_mb, weights=weights, divisor=early, gradient=gradient, kernel=kernel
    )
    with torch.no_grad():
        total = _reduced(task, values, mask=mask, weights=weights, reduction=reduction, divisor=early)
    if collected is not None:
        total = attach(total, collected, tensors)
    return total if late is None else total / late
