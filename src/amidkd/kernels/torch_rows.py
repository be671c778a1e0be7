"""The row kernel in plain torch: any device, no compiler, float32 and float64.

A few rows at a time, so that on a CPU all buffers stay in the caches. What costs is the number of passes over V and the
exponentials, so every pass is one large operation in place, and nothing is chosen per token. Rows in which some token
is masked, or nearly, are left to `amidkd.kernels.torch_masked`.
"""

import math

import torch
from torch import Tensor

from amidkd.kernels.block import MEASURED, Block
from amidkd.kernels.heads import piece_rows
from amidkd.kernels.terms import Anchor
from amidkd.kernels.torch_forms import compare, kl_each_way
from amidkd.kernels.torch_masked import masked_terms
from amidkd.kernels.torch_mixture import Mix, Piece, Space
from amidkd.maths.shapes import Setting

__all__ = ["BUFFERS", "torch_rows"]

BUFFERS = 16
"""How many [n, V] buffers live at once, the worst of the catalogue."""

WIDEST = 256.0
"""From this |log q − log p| on, numbers stand for −inf: the difference of the two has too few digits for what lives."""


@torch.no_grad()
def torch_rows(block: Block) -> None:
    """Compute a block: on a CPU a few rows at a time, elsewhere all at once.

    Args:
        block: Its arithmetic is done in float64 where its logits are, otherwise in float32.
    """
    sides = [block.student] if block.teacher is None else [block.student, block.teacher]
    dtype = torch.float64 if any(side.dtype == torch.float64 for side in sides) else torch.float32
    device = block.student.device
    step = piece_rows(block.count, block.vocab_size, device)
    space = Space(step, block.vocab_size, dtype=dtype, device=device)
    mixes = [Mix.of(term, dtype=dtype, device=device) for term in block.terms]
    for start in range(0, block.count, step):
        _Rows(block, mixes, space, slice(start, min(start + step, block.count)), dtype).run()


class _Rows:
    """A few rows of a block: dL/dz = ``slope`` + ``pull``·q, and what else has been found so far."""

    def __init__(self, block: Block, mixes: list[Mix], space: Space, rows: slice, dtype: torch.dtype) -> None:
        self.block = block
        self.mixes = mixes
        self.space = space
        self.rows = rows
        self.dtype = dtype
        self.count = rows.stop - rows.start
        self.slope: Tensor | None = None
        self.pull: Tensor | None = None
        self.scale = None if block.scale is None else block.scale[rows].to(dtype).unsqueeze(-1)

    def buffer(self, name: str) -> Tensor:
        return self.space.get(name, self.count)

    def load(self, logits: Tensor, index: Tensor | None, name: str) -> Tensor:
        """Logits [m, V] in the dtype of the arithmetic, as they are where they can be."""
        some = logits[:, : self.block.vocab_size]
        if index is None:
            some = some[self.rows]
            return some if some.dtype == self.dtype and some.is_contiguous() else self.buffer(name).copy_(some)
        if some.dtype == self.dtype:
            return torch.index_select(some, 0, index[self.rows], out=self.buffer(name))
        return self.buffer(name).copy_(some.index_select(0, index[self.rows]))

    def softmax(self, logits: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """The probabilities [m, V], 0 in a row without any token, and the log-sum-exp [m, 1] in float64."""
        probs = torch.softmax(logits, -1, out=self.buffer(name))
        top = logits.amax(-1, keepdim=True)
        log_sum = top.double() - probs.amax(-1, keepdim=True).double().log()
        empty = top == -torch.inf
        if bool(empty.any()):
            probs.masked_fill_(empty, 0.0)
        return probs, log_sum

    def run(self) -> None:
        """Compute them."""
        block, rows = self.block, self.rows
        student = self.load(block.student, block.student_rows, "zs")
        tempered = block.teacher is not None and block.temperature != 1.0
        nll = factor = None
        if block.labels is not None or not tempered:
            q, log_sum = self.softmax(student, "q")
        if block.labels is not None:
            nll, factor = self.cross_entropy(student, log_sum, block.labels[rows])
            if block.gradient is not None and tempered:
                self.slope = torch.mul(q, factor, out=self.buffer("acc"))
            elif block.gradient is not None:
                self.pull = factor
        if tempered:
            student = torch.div(student, block.temperature, out=self.buffer("zs"))
            q, log_sum = self.softmax(student, "q")
        values = torch.zeros(self.count, dtype=torch.float64, device=student.device)
        if block.teacher is not None:
            values = self.terms(student, q, log_sum)
        if block.divergences is not None:
            block.divergences[rows] = values.to(block.divergences.dtype)
        if block.cross_entropies is not None:
            block.cross_entropies[rows] = 0.0 if nll is None else nll.to(block.cross_entropies.dtype)
        block.values[rows] = (values if nll is None else values + block.cross_entropy_weight * nll).to(block.values)
        if block.gradient is not None:
            self.write(block.gradient, q, factor)

    def cross_entropy(self, logits: Tensor, log_sum: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """−log q(label) [m], and the factor of its gradient q − onehot [m, 1]: 0 where it is infinite or not given."""
        given = labels >= 0
        z = logits.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        nll = torch.where(z == -torch.inf, math.inf, log_sum.squeeze(-1) - z)
        nll = torch.where(given, nll, 0.0)
        factor = (given & (nll != math.inf)).to(self.dtype) * self.block.cross_entropy_weight
        return nll, self.scaled(factor.unsqueeze(-1))

    def scaled(self, factor: Tensor) -> Tensor:
        return factor if self.scale is None else factor * self.scale

    def terms(self, student: Tensor, q: Tensor, log_sum: Tensor) -> Tensor:
        """The divergence [m] in float64; adds to ``slope`` and ``pull``."""
        block = self.block
        assert block.teacher is not None
        teacher = self.load(block.teacher, block.teacher_rows, "zt")
        if block.temperature != 1.0:
            teacher = torch.div(teacher, block.temperature, out=self.buffer("zt"))
        p, log_sum_p = self.softmax(teacher, "p")
        gap = torch.sub(student, teacher, out=self.buffer("gap")).sub_((log_sum - log_sum_p).to(self.dtype))
        low, high = torch.aminmax(gap)
        spread = max(-float(low), float(high))
        # a sum is NaN or infinite where any of its parts is; max() may lose a NaN
        if not math.isfinite(float(low) + float(high)) or spread > WIDEST:
            return self.masked(student, teacher)
        piece = Piece(
            rows=self.rows,
            space=self.space,
            logits=(teacher, student),
            probs=(p, q),
            log_sums=(log_sum_p.to(self.dtype), log_sum.to(self.dtype)),
            gap=gap,
            spread=spread,
        )
        values = torch.zeros((self.count, 1), dtype=torch.float64, device=gap.device)
        metrics = None if block.metrics is None else block.metrics[:, self.rows]
        if metrics is not None:
            self.measure(piece, metrics)
        for number, (term, mix) in enumerate(zip(block.terms, self.mixes, strict=True)):
            measured = None if metrics is None or number != block.assistant else metrics[5:]
            part = compare(piece, term, mix.some(self.rows), gradient=block.gradient is not None, measured=measured)
            weight = term.weight * term.factor
            values.add_(part.value.clamp(min=0.0), alpha=weight)
            if part.slope is not None:
                self.add(part.slope, part.factor, weight / block.temperature)
        return values.squeeze(-1)

    def add(self, slope: Tensor, factor: Setting, weight: float) -> None:
        """Add weight·factor·(A − q ΣA)."""
        whole = factor * weight if self.scale is None else self.scale * factor * weight
        pull = slope.sum(-1, keepdim=True).mul_(-whole)
        self.pull = pull if self.pull is None else self.pull + pull
        if self.slope is None:
            self.slope = torch.mul(slope, whole, out=slope if len(self.mixes) == 1 else self.buffer("acc"))
        elif isinstance(whole, Tensor):
            self.slope.addcmul_(slope, whole)
        else:
            self.slope.add_(slope, alpha=whole)

    def masked(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The same for rows with masked tokens."""
        block = self.block
        values, slope = masked_terms(
            block.terms,
            self.rows,
            teacher=teacher,
            student=student,
            assistant=block.assistant,
            metrics=None if block.metrics is None else block.metrics[:, self.rows],
        )
        if block.gradient is not None:
            slope.div_(block.temperature)
            if self.scale is not None:
                slope.mul_(self.scale)
            self.slope = slope if self.slope is None else self.slope.add_(slope)
        return values.double()

    def write(self, gradient: Tensor, q: Tensor, factor: Tensor | None) -> None:
        """The gradient to where it is wanted."""
        block = self.block
        some = gradient[:, : block.vocab_size]
        direct = block.student_rows is None and some.dtype == self.dtype
        out = some[self.rows] if direct else self.buffer("out")
        if self.slope is None:
            torch.mul(q, 0.0 if self.pull is None else self.pull, out=out)
        elif self.pull is None:
            out.copy_(self.slope)
        else:
            torch.addcmul(self.slope, q, self.pull, out=out)
        if factor is not None and block.labels is not None:
            out.scatter_add_(-1, block.labels[self.rows].clamp(min=0).unsqueeze(-1), -factor)
        if direct:
            return
        if block.student_rows is None:
            some[self.rows] = out.to(some.dtype)
        else:
            some.index_copy_(0, block.student_rows[self.rows], out.to(some.dtype))

    def measure(self, piece: Piece, metrics: Tensor) -> None:
        """The first five rows of ``Block.metrics``."""
        metrics[0], metrics[1] = kl_each_way(piece)
        for row, anchor in ((2, Anchor.TEACHER), (3, Anchor.STUDENT)):
            mean = torch.linalg.vecdot(piece.probs[anchor], piece.logits[anchor])
            metrics[row] = (piece.log_sums[anchor].squeeze(-1) - mean).clamp(min=0.0)
        first, second = (logits.argmax(-1) for logits in piece.logits)
        metrics[MEASURED.index("top1_agreement")] = (first == second).to(metrics.dtype)
