"""Value and gradient in one walk over the tokens, a few at a time where logits have to be made.

The walk makes the logits of some tokens, hands them to a row kernel, which writes values and the gradient over them,
and collects what the gradient is of. Logits that exist already go to the row kernel as they are. Beside the inputs
and their gradient there is never more than ``memory_mb``. The backward pass only scales what the forward pass found.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amidkd.kernels.block import MEASURED, Block, RowKernel
from amidkd.kernels.general import BUFFERS, BUFFERS_NARROW, BUFFERS_TEACHER, general
from amidkd.kernels.heads import Rows, take
from amidkd.kernels.metrics import Metrics, first_with_assistant
from amidkd.kernels.several import BUFFERS as MERGING
from amidkd.kernels.several import SeveralTeachers, merge, merged_terms, shared_mixture
from amidkd.kernels.sides import Some, StudentSide, TeacherSide, logits_dtype, needs_buffer
from amidkd.kernels.task import Task
from amidkd.kernels.terms import Term, terms_of
from amidkd.kernels.torch_rows import BUFFERS as TORCH_BUFFERS
from amidkd.kernels.torch_rows import torch_rows
from amidkd.kernels.truncated import Merged
from amidkd.maths.objective import AnyObjective, WeightedSum
from amidkd.signals import Hidden, TopK

__all__ = ["attach", "attach_found", "beyond_row_kernels", "chunk_tokens", "chunked"]


MEMORY_MB = {"cpu": 128.0, "other": 1024.0}
"""Room for a chunk's temporaries, MiB, by device: a GPU's products want 1,000 tokens of 150,000 logits and more."""


def chunk_tokens(*, memory_mb: float, token_bytes: float, count: int) -> int:
    """How many tokens a chunk has: as many as fit, at least one, and all chunks about equal.

    Args:
        memory_mb: Room for a chunk's temporaries, MiB.
        token_bytes: What one token takes of it.
        count: n, the tokens to be walked over.
    """
    most = max(1, int(memory_mb * 2**20 // max(1.0, token_bytes)))
    chunks = max(1, -(-count // most))
    return max(1, -(-count // chunks))


@torch.no_grad()
def chunked(
    task: Task,
    metrics: Metrics | None,
    *,
    memory_mb: float | None,
    weights: Tensor | None,
    gradient: bool,
    divisor: Tensor | None = None,
    kernel: RowKernel = torch_rows,
) -> tuple[Tensor, StudentSide | None]:
    """The loss of each token that counts, and the gradient of their weighted sum over a divisor.

    Args:
        task: The call.
        metrics: Where to add what is measured on the way, or None.
        memory_mb: Room for a chunk's temporaries, MiB; None: ``MEMORY_MB``.
        weights: Factor [N] of each token in the sum, or None for 1.
        gradient: Whether one is wanted.
        divisor: What the sum is divided by, scalar, or None for 1.
        kernel: What computes the tokens of a chunk.

    Returns:
        Values [n] and the collected gradient of Σ weight·value / divisor, None where none is wanted.
    """
    if memory_mb is None:
        memory_mb = MEMORY_MB["cpu" if task.device.type == "cpu" else "other"]
    walk = _Walk(task, metrics, memory_mb=memory_mb, weights=weights, divisor=divisor, gradient=gradient, kernel=kernel)
    for start in range(0, task.count, walk.step):
        walk.chunk(start, min(start + walk.step, task.count))
    return walk.values, walk.student if gradient else None


def beyond_row_kernels(task: Task, *, measured: bool) -> str | None:
    """Why no row kernel computes a call, which is then left to `general`; None where they do.

    Args:
        task: The call.
        measured: Whether metrics are wanted.
    """
    if task.objective is None:
        return None
    terms = terms_of(task.objective)
    if terms is None:
        return "the objective has a divergence of your own"
    if not terms:
        return "every term of the objective has weight 0"
    if measured and _assistant(task.objective) == -1:
        return "metrics are wanted of an assistant whose terms have weight 0"
    if task.several and shared_mixture(task.objective, len(task.teachers)) is None:
        return "the terms do not mix the several teachers with one alpha and the same weights"
    return None


def _assistant(objective: AnyObjective) -> int | None:
    """The number, among the terms of weight above 0, of the first of all with an assistant; −1: it has weight 0."""
    first = first_with_assistant(objective)
    if "assistant" not in first.between:
        return None
    weighted = objective.terms if isinstance(objective, WeightedSum) else ((1.0, objective),)
    kept = [term for weight, term in weighted if weight != 0]
    return next((number for number, term in enumerate(kept) if term is first), -1)


class _Walk:
    """What the chunks of one call share."""

    def __init__(
        self,
        task: Task,
        metrics: Metrics | None,
        *,
        memory_mb: float,
        weights: Tensor | None,
        divisor: Tensor | None,
        gradient: bool,
        kernel: RowKernel,
    ) -> None:
        self.task = task
        self.metrics = metrics
        self.weights = weights
        self.divisor = divisor
        self.gradient = gradient
        self.kernel = kernel
        self.general = beyond_row_kernels(task, measured=metrics is not None) is not None
        self.step = chunk_tokens(memory_mb=memory_mb, token_bytes=self._token_bytes(), count=task.count)
        self.values = torch.empty(task.count, dtype=task.dtype, device=task.device)
        self.student = StudentSide(
            task.student,
            vocab_size=task.vocab_size,
            dtype=task.dtype,
            step=self.step,
            gradient=gradient,
            rows=task.rows,
        )
        made: dict[str, Any] = {
            "vocab_size": task.vocab_size,
            "dtype": task.dtype,
            "device": task.device,
            "step": self.step,
        }
        wide = [] if self.general else [teacher for teacher in task.teachers if not isinstance(teacher, TopK)]
        self.teachers = [TeacherSide(teacher, **made) for teacher in wide]
        self.merged = None
        if task.several and wide:
            self.merged = SeveralTeachers(self.teachers, temperature=task.temperature, **made)

    def _token_bytes(self) -> float:
        """What a token takes of the memory of a chunk; 0 where nothing grows with the chunk."""
        task = self.task
        V, size = task.vocab_size, task.dtype.itemsize
        total = 0
        for signal in (task.student, *task.teachers):
            if isinstance(signal, TopK):
                total += 8 * size * (signal.ids.shape[1] + 1)
            elif needs_buffer(signal, task.device):
                total += V * logits_dtype(signal, task.dtype).itemsize
                if isinstance(signal, Hidden) and signal.weight.dtype != logits_dtype(signal, task.dtype):
                    total += V * signal.weight.dtype.itemsize
        if isinstance(task.student, Hidden) and task.student.softcap is not None and self.gradient:
            total += V * logits_dtype(task.student, task.dtype).itemsize
        wide = sum(not isinstance(teacher, TopK) for teacher in task.teachers)
        if task.several and wide and not self.general:
            total += V * size * (1 if task.device.type == "cpu" else 1 + MERGING + 4 * wide)
        if task.device.type != "cpu" and len(task.teachers) > wide and not self.general:
            total += V * size
        if self.general:
            total += V * size * (BUFFERS + BUFFERS_TEACHER * (wide - 1) if wide else BUFFERS_NARROW)
        elif self.kernel is torch_rows and task.device.type != "cpu":
            total += V * size * TORCH_BUFFERS
        return total

    def chunk(self, start: int, stop: int) -> None:
        """Compute some of the tokens that count."""
        rows, count = self.task.some(start, stop), stop - start
        logits = self.student.load(rows, count)
        target = self.student.target(rows, count)
        if self.general:
            self._general(rows, count, logits, target, self.values[start:stop])
        else:
            block = self._block(rows, count, logits, target, self.values[start:stop])
            if self.task.teachers and isinstance(self.task.teachers[0], TopK):
                self._truncated(block, rows)
            else:
                self.kernel(block)
                self._measure(block)
        self.student.collect(rows, count)

    def _general(self, rows: Rows, count: int, logits: Some, target: Tensor | None, values: Tensor) -> None:
        tensor, index = logits
        z = (tensor if index is None else tensor[index])[:, : self.task.vocab_size].to(self.task.dtype)
        found, slope = general(self.task, rows, z, self.metrics, gradient=self.gradient)
        values.copy_(found)
        if target is None:
            return
        assert slope is not None
        scale = self._scale(rows, count)
        if scale is not None:
            slope.mul_(scale.to(slope).unsqueeze(-1))
        target[slice(None) if index is None else index, : self.task.vocab_size] = slope.to(target.dtype)

    def _block(self, rows: Rows, count: int, logits: Some, target: Tensor | None, values: Tensor) -> Block:
        task, measured = self.task, self.metrics is not None
        labels = None
        found = task.labels_of(rows)
        if found is not None:
            labels = found[0].masked_fill(~found[1], -1)
        soft = bool(task.teachers)
        teacher, teacher_rows, terms = self._teacher(rows, count) if soft else (None, None, ())
        return Block(
            count=count,
            vocab_size=task.vocab_size,
            student=logits[0],
            student_rows=logits[1],
            teacher=teacher,
            teacher_rows=teacher_rows,
            terms=terms,
            temperature=task.temperature,
            labels=labels,
            cross_entropy_weight=task.cross_entropy_weight,
            scale=self._scale(rows, count),
            values=values,
            divergences=torch.empty_like(values) if measured and soft else None,
            cross_entropies=torch.empty_like(values) if measured and labels is not None else None,
            metrics=values.new_empty((len(MEASURED), count)) if measured and soft else None,
            assistant=_assistant(task.objective) if task.objective is not None else None,
            gradient=target,
        )

    def _scale(self, rows: Rows, count: int) -> Tensor | None:
        """Factor [n] of each token's gradient."""
        task = self.task
        if self.weights is None and self.divisor is None:
            return None
        if self.weights is None:
            scale = torch.ones(count, dtype=task.dtype, device=task.device)
        else:
            scale = take(self.weights, rows).to(device=task.device, dtype=task.dtype)
        return scale if self.divisor is None else scale / self.divisor

    def _teacher(self, rows: Rows, count: int) -> tuple[Tensor, Tensor | None, tuple[Term, ...]]:
        """The teacher's logits (of the outcomes, where it is truncated) with their index, and the terms."""
        task, terms = self.task, self._terms(rows)
        if not task.several:
            if self.teachers:
                return *self.teachers[0].load(rows, count), terms
            log_p = task.log_p(rows)
            assert isinstance(log_p, Tensor)
            return log_p, None, terms
        mixture = shared_mixture(task.objective_of(rows), len(task.teachers))
        assert mixture is not None
        if self.merged is None:
            log_p, level = merge(list(task.log_p(rows)), mixture)
        else:
            log_p, level = self.merged.load(rows, count, mixture)
        return log_p, None, merged_terms(terms, level)

    def _terms(self, rows: Rows) -> tuple[Term, ...]:
        terms = terms_of(self.task.objective_of(rows))
        assert terms is not None
        device = self.task.device

        def here(setting: float | Tensor) -> float | Tensor:
            return setting.to(device) if isinstance(setting, Tensor) else setting

        return tuple(replace(term, s=here(term.s), lam=here(term.lam)) for term in terms)

    def _truncated(self, block: Block, rows: Rows) -> None:
        """The same over K tokens and a tail; the cross-entropy over V, whose log-sum-exp is that of the outcomes."""
        task = self.task
        ids = task.ids(rows)
        assert ids is not None
        merged = Merged(block.student, block.student_rows, ids, vocab_size=task.vocab_size, dtype=task.dtype)
        outcomes = merged.outcomes()
        slope = torch.empty_like(outcomes) if self.gradient else None
        narrow = replace(
            block,
            vocab_size=outcomes.shape[1],
            student=outcomes,
            student_rows=None,
            labels=None,
            cross_entropies=None,
            gradient=slope,
        )
        self.kernel(narrow)
        onehot = None
        if block.labels is not None:
            onehot = _cross_entropy(block, outcomes, slope)
        if slope is not None:
            assert block.gradient is not None
            merged.spread(slope, block.gradient, onehot)
        self._measure(block)

    def _measure(self, block: Block) -> None:
        if self.metrics is None:
            return
        if block.metrics is not None and block.divergences is not None:
            seen = MEASURED if block.assistant is not None else MEASURED[:-2]
            self.metrics.add(dict(zip(seen, block.metrics, strict=False)))
            self.metrics.add({"divergence": block.divergences})
        if block.cross_entropies is not None and block.labels is not None:
            self.metrics.add({"cross_entropy": block.cross_entropies}, given=block.labels >= 0)


def _cross_entropy(block: Block, outcomes: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Add the cross-entropy of merged students; returns labels [n] and what their one-hot's gradient is less [n]."""
    assert block.labels is not None
    given, labels = block.labels >= 0, block.labels.clamp(min=0)
    at = torch.arange(block.count, device=labels.device) if block.student_rows is None else block.student_rows
    nll = torch.where(given, outcomes.logsumexp(-1) - block.student[at, labels].to(outcomes.dtype), 0.0)
    block.values.add_(nll, alpha=block.cross_entropy_weight)
    if block.cross_entropies is not None:
        block.cross_entropies.copy_(nll)
    factor = block.cross_entropy_weight * (given & nll.isfinite()).to(outcomes.dtype)
    if block.scale is not None:
        factor = factor * block.scale
    if slope is not None:
        slope.addcmul_(torch.where(factor.unsqueeze(-1) == 0, 0.0, outcomes.softmax(-1)), factor.unsqueeze(-1))
    return labels, factor


class _Attach(torch.autograd.Function):
    """A sum whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: list[Tensor | None], *tensors: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in tensors]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("chunked and fused have no second derivative (create_graph=True); use backend='naive'")
        if ctx.gradients is None:
            raise RuntimeError(
                "chunked and fused compute the gradient once, with the value: a second backward through the same loss "
                "has none left. Call distillation_loss again, or use backend='naive'"
            )
        gradients, ctx.gradients = ctx.gradients, None
        found: list[Tensor | None] = []
        # a pass over memory is saved where it is known to change nothing
        as_it_is = grad_output.device.type == "cpu" and float(grad_output) == 1.0
        while gradients:
            gradient, dtype = gradients.pop(0), ctx.dtypes[len(found)]
            if gradient is not None:
                gradient = (gradient if as_it_is else gradient.mul_(grad_output)).to(dtype)
            found.append(gradient)
        return (None, None, *found)


def attach(total: Tensor, collected: StudentSide, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Give a sum the gradient that was found with it.

    Args:
        total: Σ weight·value, scalar.
        collected: Its gradient, as ``chunked`` found it.
        tensors: The student's tensors, in the order of ``StudentSide.finish``.
    """
    return attach_found(total, collected.finish(), tensors)


def attach_found(total: Tensor, gradients: list[Tensor | None], tensors: Sequence[Tensor | None]) -> Tensor:
    """Give a sum the gradients that were found with it; they are used up by its backward.

    Args:
        total: Scalar.
        gradients: With respect to each tensor, of its shape; None: none is wanted.
        tensors: What the sum is a function of.
    """
    return _Attach.apply(total, gradients, *tensors)
