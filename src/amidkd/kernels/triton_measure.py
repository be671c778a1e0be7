# mypy: ignore-errors
"""The last of the Triton kernels: the numbers of ``Block.metrics``. It is in no hurry, and minds masks everywhere."""

import triton
import triton.language as tl

from amidkd.kernels.triton_forms import INFINITY, LN2, OF_ANCHOR, apart, beside, mixture
from amidkd.kernels.triton_open import (
    EACH_TERM,
    NO_STUDENT,
    NO_TEACHER,
    OF_TERMS,
    fold,
    logits,
    mix_of,
    none,
    open_row,
    row_of,
)

__all__ = ["measure_rows"]


@triton.jit(do_not_specialize=["count", "number"])
def measure_rows(
    student,
    student_rows,
    student_stride,
    teacher,
    teacher_rows,
    teacher_stride,
    mix,
    mix_count,
    state,
    metrics,
    metrics_stride,
    count,
    V,
    factor,
    number,
    SPEC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rows of ``MEASURED``; those of the assistant unless ``SPEC`` is None. Runs after the term's own sums."""
    token = tl.program_id(0)
    own = student + row_of(student_rows, token) * student_stride
    other = teacher + row_of(teacher_rows, token) * teacher_stride
    row, flags = open_row(state, count, token, factor)
    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    forward, backward, of_p, of_q = none(BLOCK), none(BLOCK), none(BLOCK), none(BLOCK)
    of_r, share, only_p, only_q = none(BLOCK), none(BLOCK), none(BLOCK), none(BLOCK)
    best_s, best_t = zero - INFINITY, zero - INFINITY
    at_s, at_t = tl.zeros((BLOCK,), dtype=tl.int32), tl.zeros((BLOCK,), dtype=tl.int32)
    if SPEC is not None:
        numbers = mix_of(mix, number, mix_count, token, flags, SPEC[OF_ANCHOR])
        normaliser = tl.load(state + (OF_TERMS + EACH_TERM * number) * count + token)
    for at in range(0, V, BLOCK):
        columns = at + tl.arange(0, BLOCK)
        zs, zt = logits(own, columns, V, True), logits(other, columns, V, True)
        at_s, at_t = tl.where(zs > best_s, columns, at_s), tl.where(zt > best_t, columns, at_t)
        best_s, best_t = tl.maximum(best_s, zs), tl.maximum(best_t, zt)
        delta, log_p, log_q, has_p, has_q = apart(zs, zt, row, True)
        p, q, rise, x, line, near, bend, _ = beside((log_p, -delta, log_q, zero, has_p, has_q), 0.0, True)
        forward += fold(tl.where(near, bend, tl.maximum(rise - line, 0.0)), BLOCK)
        backward += fold(tl.where(near, rise * x - bend, tl.maximum(q * x - rise, 0.0)), BLOCK)
        only_p += fold(tl.where(has_p & (has_q == 0), 1.0, 0.0), BLOCK)
        only_q += fold(tl.where(has_q & (has_p == 0), 1.0, 0.0), BLOCK)
        of_p -= fold(tl.where(has_p, p * log_p, 0.0), BLOCK)
        of_q -= fold(tl.where(has_q, q * log_q, 0.0), BLOCK)
        if SPEC is not None:
            mixed = mixture(zs, zt, row, numbers, SPEC, 0, True)
            log_r = tl.where(mixed[5], mixed[2] - normaliser, 0.0)
            of_r -= fold(tl.where(mixed[5], tl.exp2(log_r) * log_r, 0.0), BLOCK)
            share += fold(p * mixed[3], BLOCK)
    empty = (flags & (NO_STUDENT | NO_TEACHER)) != 0
    out = metrics + token
    tl.store(out, tl.where(empty | (tl.sum(only_p, axis=0) > 0.0), INFINITY, tl.sum(forward, axis=0)))
    out += metrics_stride
    tl.store(out, tl.where(empty | (tl.sum(only_q, axis=0) > 0.0), INFINITY, tl.sum(backward, axis=0)))
    out += metrics_stride
    tl.store(out, tl.sum(of_p, axis=0) * LN2)
    out += metrics_stride
    tl.store(out, tl.sum(of_q, axis=0) * LN2)
    out += metrics_stride
    first_s = tl.min(tl.where(best_s == tl.max(best_s, axis=0), at_s, V), axis=0)
    first_t = tl.min(tl.where(best_t == tl.max(best_t, axis=0), at_t, V), axis=0)
    tl.store(out, tl.where(first_s == first_t, 1.0, 0.0))
    if SPEC is not None:
        out += metrics_stride
        tl.store(out, tl.sum(of_r, axis=0) * LN2)
        out += metrics_stride
        tl.store(out, tl.sum(share, axis=0))
