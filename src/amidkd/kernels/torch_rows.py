"""The row kernel in plain torch: any device, no compiler, float32 and float64."""

import torch
from torch import Tensor

from amidkd.kernels.block import Block
from amidkd.kernels.torch_masked import masked_terms

__all__ = ["BUFFERS", "torch_rows"]

BUFFERS = 24
PIECE = 2**17


@torch.no_grad()
def torch_rows(block: Block) -> None:
    """Compute a block, a few rows at a time."""
    step = max(1, PIECE // block.vocab_size)
    for start in range(0, block.count, step):
        _piece(block, slice(start, min(start + step, block.count)))


def _logits(tensor: Tensor, index: Tensor | None, rows: slice, block: Block, dtype: torch.dtype) -> Tensor:
    some = tensor[rows] if index is None else tensor[index[rows]]
    return some[:, : block.vocab_size].to(dtype)


def _piece(block: Block, rows: slice) -> None:
    wide = block.student.dtype == torch.float64 or (block.teacher is not None and block.teacher.dtype == torch.float64)
    dtype = torch.float64 if wide else torch.float32
    z = _logits(block.student, block.student_rows, rows, block, dtype)
    slope = torch.zeros_like(z)
    values = z.new_zeros(z.shape[0])
    if block.teacher is not None:
        zt = _logits(block.teacher, block.teacher_rows, rows, block, dtype)
        values, slope = masked_terms(
            block.terms,
            rows,
            teacher=zt / block.temperature,
            student=z / block.temperature,
            assistant=block.assistant,
            metrics=None if block.metrics is None else block.metrics[:, rows],
        )
        slope.div_(block.temperature)
    if block.divergences is not None:
        block.divergences[rows] = values
    if block.labels is None and block.cross_entropies is not None:
        block.cross_entropies[rows] = 0.0
    if block.labels is not None:
        labels = block.labels[rows]
        given, at = labels >= 0, labels.clamp(min=0).unsqueeze(-1)
        nll = torch.where(given, z.logsumexp(-1) - z.gather(-1, at).squeeze(-1), 0.0)
        if block.cross_entropies is not None:
            block.cross_entropies[rows] = nll
        values = values + block.cross_entropy_weight * nll
        factor = (block.cross_entropy_weight * (given & nll.isfinite()).to(dtype)).unsqueeze(-1)
        slope.addcmul_(torch.where(factor == 0, 0.0, z.softmax(-1)), factor)
        slope.scatter_add_(-1, at, -factor)
    block.values[rows] = values
    if block.gradient is not None:
        if block.scale is not None:
            slope.mul_(block.scale[rows].to(dtype).unsqueeze(-1))
        V = block.vocab_size
        where = rows if block.student_rows is None else block.student_rows[rows]
        block.gradient[where, :V] = slope.to(block.gradient.dtype)
