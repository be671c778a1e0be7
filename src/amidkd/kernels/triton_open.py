# mypy: ignore-errors
# ruff: noqa: RET505 (of two branches chosen at compile time, each returns)
"""The first of the Triton kernels: what does not depend on a term; and how all of them find their rows."""

import triton
import triton.language as tl

from amidkd.kernels.triton_forms import INFINITY, LN2, LOG2E

__all__ = [
    "COLUMNS",
    "EACH_TERM",
    "HARD",
    "LOG_PLAIN",
    "MASKED_ROW",
    "NO_MEETING",
    "NO_STUDENT",
    "NO_TEACHER",
    "OF_TERMS",
    "PULL",
    "fold",
    "log_sums",
    "logits",
    "mix_of",
    "none",
    "open_row",
    "row_of",
    "whole_blocks",
]

FOLD = tl.constexpr(4)
"""Neighbours in a row that are added up at once: no thread has fewer, and one register then holds their sum."""

TOP_STUDENT = tl.constexpr(0)
TOP_TEACHER = tl.constexpr(1)
LOG_STUDENT = tl.constexpr(2)
LOG_TEACHER = tl.constexpr(3)
LOG_RATIO = tl.constexpr(4)
FLAGS = tl.constexpr(5)
PULL = tl.constexpr(6)
HARD = tl.constexpr(7)
LOG_PLAIN = tl.constexpr(8)
OF_TERMS = tl.constexpr(9)
EACH_TERM = tl.constexpr(3)
"""Rows of ``state`` [OF_TERMS + EACH_TERM · terms, n]: what exponentials are taken less, of student and teacher; log₂
of their sums at the temperature, and of the ratio of these; flags; factors of q and of cross-entropy in the gradient;
log₂ of the student's sum without temperature; and of each term log₂ Z, ΣH, and the factor of its gradient, 0 where it
is infinite."""

COLUMNS = tl.constexpr(11)
"""Rows of ``mix`` [terms, COLUMNS, n or 1]: s, 1/s, λ, 1 − λ, the slope for either anchor (teacher, student) where it
is linear, logarithms of the weights of p and of q alone, these less the larger, and 1, or 0 where r is p or q."""

MASKED_ROW = tl.constexpr(1)
NO_MEETING = tl.constexpr(2)
NO_STUDENT = tl.constexpr(4)
NO_TEACHER = tl.constexpr(8)
"""Flags: some token is masked; no token is left to both sides; none to one of them."""

LOWEST = tl.constexpr(-1e30)
"""Logits below count as masked in that they get the care of masked rows."""
FAR = tl.constexpr(40.0)
"""Powers of 2 up to which sums of exponentials may be off their maximum."""


@triton.jit
def row_of(index, token):
    """The row of a token; 64 bits, since N·V may pass 2³¹."""
    if index is None:
        return token.to(tl.int64)
    else:
        return tl.load(index + token)


@triton.jit
def logits(base, columns, V, MASKED: tl.constexpr):
    """Logits in float32; beyond V they are masked, which only ``MASKED`` minds."""
    if MASKED:
        return tl.load(base + columns, mask=columns < V, other=-INFINITY).to(tl.float32)
    else:
        return tl.load(base + columns).to(tl.float32)


@triton.jit
def fold(x, BLOCK: tl.constexpr):
    """[BLOCK] to its sums over ``FOLD`` neighbours."""
    return tl.sum(tl.reshape(x, (BLOCK // FOLD, FOLD)), axis=1)


@triton.jit
def none(BLOCK: tl.constexpr):
    """Where such sums are added up."""
    return tl.zeros((BLOCK // FOLD,), dtype=tl.float32)


@triton.jit
def open_row(state, count, token, factor):
    """What `mixture` takes of a row, and the flags."""
    top_s, top_t = tl.load(state + TOP_STUDENT * count + token), tl.load(state + TOP_TEACHER * count + token)
    log_s, log_t = tl.load(state + LOG_STUDENT * count + token), tl.load(state + LOG_TEACHER * count + token)
    apart = tl.load(state + LOG_RATIO * count + token)
    return (top_s, top_t, log_s, log_t, apart, factor), tl.load(state + FLAGS * count + token).to(tl.int32)


@triton.jit
def mix_of(mix, number, mix_count, token, flags, STUDENT: tl.constexpr):
    """What `mixture` takes of a term."""
    at = mix + number * (COLUMNS * mix_count) + tl.where(mix_count == 1, 0, token)
    s, inverse = tl.load(at), tl.load(at + mix_count)
    lam, rest = tl.load(at + 2 * mix_count), tl.load(at + 3 * mix_count)
    slope = tl.load(at + (5 if STUDENT else 4) * mix_count)
    # Of sources that share no token only the difference of the two matters; the larger may leave no digit of the rest.
    apart = (flags & NO_MEETING) != 0
    level_p = tl.load(at + tl.where(apart, 8, 6) * mix_count)
    level_q = tl.load(at + tl.where(apart, 9, 7) * mix_count)
    return s, inverse, lam, rest, slope, level_p, level_q, tl.load(at + 10 * mix_count)


@triton.jit
def whole_blocks(flags, V, BLOCK: tl.constexpr):
    """How far blocks are whole and nothing is masked."""
    return tl.where((flags & MASKED_ROW) != 0, 0, V // BLOCK * BLOCK)


@triton.jit
def _opened(found, sides, at, tops, V, factor, BOTH: tl.constexpr, TEMPERED: tl.constexpr, MASKED: tl.constexpr):
    """One block of `_exponentials`."""
    sum_s, sum_t, plain, high_s, high_t, low, meet = found
    BLOCK: tl.constexpr = high_s.shape[0]
    columns = at + tl.arange(0, BLOCK)
    zs = logits(sides[0], columns, V, MASKED)
    sum_s += fold(tl.exp2((zs - tops[0]) * factor), BLOCK)
    high_s = tl.maximum(high_s, zs)
    if TEMPERED:
        plain += fold(tl.exp2((zs - tops[0]) * LOG2E), BLOCK)
    common = zs
    if BOTH:
        zt = logits(sides[1], columns, V, MASKED)
        sum_t += fold(tl.exp2((zt - tops[1]) * factor), BLOCK)
        high_t = tl.maximum(high_t, zt)
        common = tl.minimum(zs, zt)
        meet = tl.maximum(meet, common)
    low = tl.minimum(low, tl.where(columns < V, common, INFINITY) if MASKED else common)
    return sum_s, sum_t, plain, high_s, high_t, low, meet


@triton.jit
def _exponentials(sides, tops, V, factor, BOTH: tl.constexpr, TEMPERED: tl.constexpr, BLOCK: tl.constexpr):
    """Σ 2^(factor·(z − top)) of both sides, the student's without temperature, and extremes.

    The extremes: the largest logit of each side, and the least and the largest of min(z of student, z of teacher).
    """
    lowest = tl.full((BLOCK,), -INFINITY, tl.float32)
    found = (none(BLOCK), none(BLOCK), none(BLOCK), lowest, lowest, -lowest, lowest)
    whole = V // BLOCK * BLOCK
    for at in range(0, whole, BLOCK):
        found = _opened(found, sides, at, tops, V, factor, BOTH, TEMPERED, False)
    for at in range(whole, V, BLOCK):
        found = _opened(found, sides, at, tops, V, factor, BOTH, TEMPERED, True)
    sums = tl.sum(found[0], axis=0), tl.sum(found[1], axis=0), tl.sum(found[2], axis=0)
    tops = tl.max(found[3], axis=0), tl.max(found[4], axis=0)
    return sums, tops, tl.min(found[5], axis=0), tl.max(found[6], axis=0)


@triton.jit
def _first_top(base, V, BLOCK: tl.constexpr):
    """The largest of the first logits; 0 where all of them are masked."""
    top = tl.max(logits(base, tl.arange(0, BLOCK), V, True), axis=0)
    return tl.where(top == -INFINITY, 0.0, top)


@triton.jit(do_not_specialize=["count"])
def log_sums(
    student,
    student_rows,
    student_stride,
    teacher,
    teacher_rows,
    teacher_stride,
    labels,
    scale,
    state,
    values,
    divergences,
    cross_entropies,
    count,
    V,
    factor,
    weight,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of exponentials, flags and cross-entropy of a token, with which the outputs begin.

    Exponentials are taken less the largest of the row's first logits, which saves one for every logit; where the true
    maximum is far from it, the row is read again.
    """
    token = tl.program_id(0)
    own = student + row_of(student_rows, token) * student_stride
    top_s = _first_top(own, V, BLOCK)
    BOTH: tl.constexpr = teacher is not None
    if BOTH:
        other = teacher + row_of(teacher_rows, token) * teacher_stride
        top_t = _first_top(other, V, BLOCK)
    else:
        other = own
        top_t = top_s
    sums, highs, low, meet = _exponentials((own, other), (top_s, top_t), V, factor, BOTH, TEMPERED, BLOCK)
    true_s = tl.where(highs[0] == -INFINITY, 0.0, highs[0])
    true_t = tl.where(highs[1] == -INFINITY, 0.0, highs[1]) if BOTH else top_t
    if tl.maximum(tl.abs(true_s - top_s), tl.abs(true_t - top_t)) * tl.maximum(factor, LOG2E) > FAR:
        top_s = true_s
        top_t = true_t
        sums, highs, low, meet = _exponentials((own, other), (top_s, top_t), V, factor, BOTH, TEMPERED, BLOCK)
    empty_s, empty_t = highs[0] == -INFINITY, highs[1] == -INFINITY
    sum_s, sum_t = tl.where(empty_s, 1.0, sums[0]), tl.where(empty_t, 1.0, sums[1])
    flags = tl.where(low < LOWEST, MASKED_ROW, 0) + tl.where(empty_s, NO_STUDENT, 0)
    tl.store(state + TOP_STUDENT * count + token, top_s)
    tl.store(state + LOG_STUDENT * count + token, tl.log2(sum_s))
    if BOTH:
        flags += tl.where(empty_t, NO_TEACHER, 0) + tl.where(meet == -INFINITY, NO_MEETING, 0)
        tl.store(state + TOP_TEACHER * count + token, top_t)
        tl.store(state + LOG_TEACHER * count + token, tl.log2(sum_t))
        tl.store(state + LOG_RATIO * count + token, tl.log2(sum_t / sum_s))
    tl.store(state + FLAGS * count + token, flags.to(tl.float32))
    if labels is None:
        loss = 0.0
        value = 0.0
        pull = 0.0
    else:
        label = tl.load(labels + token)
        z = tl.load(own + tl.maximum(label, 0)).to(tl.float32)
        plain = tl.where(empty_s, 1.0, sums[2]) if TEMPERED else sum_s
        loss = tl.where(z == -INFINITY, INFINITY, (top_s - z) + tl.log2(plain) * LN2)
        loss = tl.where(label >= 0, loss, 0.0)
        value = tl.where(weight == 0.0, 0.0, weight * loss)
        pull = tl.where((label >= 0) & (loss != INFINITY), weight, 0.0)
        if scale is not None:
            pull *= tl.load(scale + token)
        tl.store(state + HARD * count + token, pull)
        tl.store(state + LOG_PLAIN * count + token, tl.log2(plain))
        if TEMPERED:
            pull = 0.0
    tl.store(state + PULL * count + token, pull)
    tl.store(values + token, value)
    if divergences is not None:
        tl.store(divergences + token, 0.0)
    if cross_entropies is not None:
        tl.store(cross_entropies + token, loss)
