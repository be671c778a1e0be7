"""The distillation loss on a teacher with another tokenizer."""

# Tensors carry their shape in their name.
# ruff: noqa: N815

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from amidkd.data import Sequences
from amidkd.kernels import LossOutput, distillation_loss
from amidkd.kernels.chunked import MEMORY_MB, attach_found
from amidkd.kernels.heads import compute_dtype, exact, head_logits, sources, vocabulary
from amidkd.maths.objective import AnyObjective
from amidkd.signals import Hidden, Logits
from amidkd.teachers import Aligned
from amidkd.training.merging import Rows, Vocabulary, merge, merged_outcome
from amidkd.training.metrics import mean_metrics
from amidkd.training.settings import LossSettings
from amidkd.training.weighting import STUDENT

__all__ = ["aligned_loss"]

_BUFFERS = 12
"""Buffers over both vocabularies that a token takes, with the graph and the sorted probabilities."""


def aligned_loss(
    settings: LossSettings,
    *,
    student: Hidden | Logits,
    said: Aligned,
    sequences: Sequences,
    step: int,
    count: int,
    measure: bool,
) -> LossOutput:
    """The distillation loss of a forward pass on text that both tokenizers cut alike.

    Σ over spans of w · (D(objective; teacher, student) + uld_weight · Σ_k |p₍ₖ₎ − q₍ₖ₎|) / count, and the cross-entropy
    of all supervised tokens. D is over the outcomes of :mod:`amidkd.training.merging`; p₍ₖ₎ and q₍ₖ₎ are the k-th
    largest probabilities of the tokens that the other side does not have (universal logit distillation: Boizard et al.,
    TMLR 2025), 0 where a side has fewer. Where one side has no such token, those of the other are masked on both, as
    ids beyond a shared vocabulary are.

    A span counts once, with the weight of its first token: the probability of its text has all of its tokens in it.
    Supervised tokens outside all spans count in the denominator and add nothing.

    Args:
        settings: What to minimise; it has an objective, no skew of each sequence, and no weighting by the teacher.
        student: What the student says at the supervised positions.
        said: What the teacher says.
        sequences: The rows.
        step: Optimizer steps already made.
        count: Supervised tokens of the whole step.
        measure: Whether metrics are wanted; they are means over spans, and ``aligned_tokens``, the share of supervised
            tokens that are in one.
    """
    walk = _Walk(settings, student, said, sequences, step=step)
    learns = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in walk.leaves)
    made = [
        walk.some(objective, spans, measure=measure, learns=learns)
        for objective, chosen in _parts(settings, sequences, walk.first_S, step=step)
        for spans in walk.chunks(chosen)
    ]
    total = walk.zero + sum(out.loss for out in made)
    metrics = mean_metrics([out.metrics for out in made])
    if measure:
        metrics.setdefault("tokens", torch.zeros((), dtype=torch.long, device=total.device))
        inside_N = (said.span_N >= 0).to(total)
        metrics["aligned_tokens"] = inside_N.sum() / max(1, len(inside_N))
    if learns:
        total = attach_found(total, walk.gradients, walk.tensors)
    # after the gradient: divided first, a small one would underflow in half precision
    total = total / max(1, count)
    backend = made[0].backend if made else "chunked"
    if settings.cross_entropy_weight > 0:
        hard = _cross_entropy(settings, student, sequences, weights_N=walk.weights_N, count=count, measure=measure)
        total = total + hard.loss
        metrics |= {name: value for name, value in hard.metrics.items() if name == "cross_entropy"}
    return LossOutput(loss=total, backend=backend, metrics=metrics)


class _Walk:
    """Spans of a forward pass, a few at a time, and the gradient that they add up to."""

    def __init__(
        self,
        settings: LossSettings,
        student: Hidden | Logits,
        said: Aligned,
        sequences: Sequences,
        *,
        step: int,
    ) -> None:
        self._settings, self._said = settings, said
        self._dtype = compute_dtype([student, said.teacher])
        self.tensors = sources(student)
        found = [None if one is None else one.detach().requires_grad_(one.requires_grad) for one in self.tensors]
        self._student = _of(student, found)
        self.leaves = [one for one in found if one is not None]
        self.gradients = [
            torch.zeros_like(one, dtype=self._dtype) if one is not None and one.requires_grad else None for one in found
        ]
        self.zero = self.leaves[0].new_zeros((), dtype=self._dtype)
        size = vocabulary(student)
        size = size if settings.vocab_size is None else min(size, settings.vocab_size)
        self._ours = Vocabulary.of(said.student_M, size)
        self._theirs = Vocabulary.of(said.teacher_M, min(vocabulary(said.teacher), said.teacher_vocab_size))
        labels_N, inside_n = sequences.labels_N(), (said.span_N >= 0).nonzero()[:, 0]
        self._student_rows = _Table.of(inside_n, labels_N[inside_n], said.span_N[inside_n])
        everything = torch.arange(len(said.tokens_R), device=said.tokens_R.device)
        self._teacher_rows = _Table.of(everything, said.tokens_R, said.span_R)
        self.first_S = self._student_rows.place[self._student_rows.start_S]
        self.weights_N = None
        if settings.weights is not None:
            self.weights_N = settings.weights.of(
                sequences,
                progress=settings.progress(step),
                student=student,
                teacher=None,
                vocab_size=settings.vocab_size,
                backend=settings.kernels.backend,
                memory_mb=settings.kernels.memory_mb,
            )

    def chunks(self, spans: Tensor) -> Iterator[Tensor]:
        """Spans by as many as fit in the memory, at least one."""
        if not len(spans):
            return
        width = torch.finfo(self._dtype).bits // 8 * _BUFFERS
        tokens_s = self._student_rows.length_S[spans] * len(self._ours.outcome_V)
        tokens_s = tokens_s + self._teacher_rows.length_S[spans] * len(self._theirs.outcome_V)
        device = spans.device.type
        memory = self._settings.kernels.memory_mb or MEMORY_MB.get(device, MEMORY_MB["other"])
        room = memory * 2**20
        end, sizes = 0.0, [0]
        for one in (tokens_s * width).tolist():
            if sizes[-1] and end + one > room:
                sizes.append(0)
                end = 0.0
            sizes[-1] += 1
            end += one
        yield from spans.split(sizes)

    def some(self, objective: AnyObjective, spans: Tensor, *, measure: bool, learns: bool) -> LossOutput:
        """The loss of some spans; its gradient is added to ``gradients``."""
        settings = self._settings
        weights = None if self.weights_N is None else self.weights_N[self.first_S[spans]].to(self._dtype)
        with torch.set_grad_enabled(learns), exact(spans.device):
            log_q, own_q, log_p, own_p = self._outcomes(spans)
            out = distillation_loss(
                student=Logits(log_q),
                teacher=Logits(log_p),
                objective=objective,
                weights=weights,
                reduction="sum",
                backend=settings.kernels.backend,
                memory_mb=settings.kernels.memory_mb,
                metrics=measure,
            )
            total = out.loss
            if self._said.uld_weight > 0 and own_q.shape[1] and own_p.shape[1]:
                distance = _ranked(own_q, own_p)
                distance = distance if weights is None else weights * distance
                total = total + self._said.uld_weight * distance.sum()
        if learns:
            wanted = [leaf for leaf in self.leaves if leaf.requires_grad]
            sums = [gradient for gradient in self.gradients if gradient is not None]
            for gradient, part in zip(sums, torch.autograd.grad(total, wanted), strict=True):
                gradient += part
        return LossOutput(loss=total.detach(), backend=out.backend, metrics=out.metrics)

    def _outcomes(self, spans: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both sides over the common outcomes, and over the tokens of their own."""
        ours, theirs = self._student_rows.some(spans), self._teacher_rows.some(spans)
        outcome_c = merged_outcome(ours, theirs, self._ours, self._theirs)
        log_q, own_q = merge(self._log_probs(self._student, ours, self._ours), ours, self._ours, outcome_c)
        teacher = self._said.teacher
        with torch.no_grad():
            log_p, own_p = merge(self._log_probs(teacher, theirs, self._theirs), theirs, self._theirs, outcome_c)
        if not (len(self._ours.own_U) and len(self._theirs.own_U)):
            # the rest of one side could not be anything on the other
            log_q, log_p = log_q[:, :-1], log_p[:, :-1]
        return log_q, own_q, log_p, own_p

    def _log_probs(self, signal: Hidden | Logits, rows: Rows, vocabulary_: Vocabulary) -> Tensor:
        size = len(vocabulary_.outcome_V)
        logits = head_logits(signal, rows.place_r, vocab_size=size, dtype=self._dtype)
        return (logits / self._settings.temperature).log_softmax(-1)


def _of(signal: Hidden | Logits, tensors: Sequence[Any]) -> Hidden | Logits:
    """A signal with other tensors, in the order of ``sources``."""
    if isinstance(signal, Logits):
        return Logits(tensors[0])
    return replace(signal, states=tensors[0], weight=tensors[1], bias=tensors[2])


@dataclass(frozen=True)
class _Table:
    """The tokens of all spans of one side, one span after another."""

    place: Tensor
    token: Tensor
    start_S: Tensor
    length_S: Tensor

    @classmethod
    def of(cls, place: Tensor, token: Tensor, span: Tensor) -> "_Table":
        length_S = torch.bincount(span)
        return cls(place, token, length_S.cumsum(0) - length_S, length_S)

    def some(self, spans: Tensor) -> Rows:
        """The tokens of some spans."""
        length_c = self.length_S[spans]
        first_c = length_c.cumsum(0) - length_c
        shift = (self.start_S[spans] - first_c).repeat_interleave(length_c)
        rows = torch.arange(len(shift), device=shift.device) + shift
        return Rows(self.place[rows], self.token[rows], first_c, length_c)


def _parts(
    settings: LossSettings, sequences: Sequences, first_S: Tensor, *, step: int
) -> list[tuple[AnyObjective, Tensor]]:
    """The spans by objective."""
    assert settings.objective is not None
    objective = settings.objective.at(step)
    if settings.student_objective is None:
        return [(objective, torch.arange(len(first_S), device=first_S.device))]
    mine_S = sequences.origin_N()[first_S] == STUDENT
    return [(objective, (~mine_S).nonzero()[:, 0]), (settings.student_objective.at(step), mine_S.nonzero()[:, 0])]


def _ranked(own_q: Tensor, own_p: Tensor) -> Tensor:
    """Σ_k |p₍ₖ₎ − q₍ₖ₎| of each row, from log-probabilities [c, U] and [c, U']; the shorter is filled up with zeros."""
    q, p = (torch.sort(own.exp(), dim=-1, descending=True).values for own in (own_q, own_p))
    width = max(q.shape[1], p.shape[1])
    q, p = (torch.nn.functional.pad(one, (0, width - one.shape[1])) for one in (q, p))
    return (p - q).abs().sum(-1)


def _cross_entropy(
    settings: LossSettings,
    student: Hidden | Logits,
    sequences: Sequences,
    *,
    weights_N: Tensor | None,
    count: int,
    measure: bool,
) -> LossOutput:
    """Cross-entropy of the supervised tokens that the student did not write."""
    return distillation_loss(
        student=student,
        labels=sequences.labels_N().masked_fill(sequences.origin_N() == STUDENT, -100),
        cross_entropy_weight=settings.cross_entropy_weight,
        weights=weights_N,
        denominator=max(1, count),
        vocab_size=settings.vocab_size,
        backend=settings.kernels.backend,
        memory_mb=settings.kernels.memory_mb,
        metrics=measure,
    )
