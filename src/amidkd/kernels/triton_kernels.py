# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The Triton kernels: sweeps over V, one program for each token. `triton_rows` launches them.

    log_sums        the log-sum-exp of both sides, the cross-entropy, and whether anything is masked
    term_sums       a term's normaliser, its value, and the sums that its gradient needs
    write_gradient  A − q ΣA of all terms
    measure_rows    the numbers of ``Block.metrics``

All sums are done before the first number of a gradient is written, which may be over the logits. Sweeps are written for
rows without a masked token; such rows, and the end of a row that is no multiple of the block, take a second loop that
minds masks.
"""

import triton
import triton.language as tl

from amidkd.kernels.triton_forms import (
    INFINITY,
    KL,
    LN2,
    LOG2E,
    PURE,
    beside,
    compare,
    log2_of_1_and,
    mixture,
)

__all__ = ["COLUMNS", "EACH_TERM", "OF_TERMS", "log_sums", "measure_rows", "term_sums", "write_gradient"]

FOLD = tl.constexpr(4)
"""Neighbours in a row that are added up at once: no thread has fewer, and one register then holds their sum."""

LSE_STUDENT = tl.constexpr(0)
LSE_TEACHER = tl.constexpr(1)
APART = tl.constexpr(2)
FLAGS = tl.constexpr(3)
PULL = tl.constexpr(4)
HARD = tl.constexpr(5)
LSE_PLAIN = tl.constexpr(6)
OF_TERMS = tl.constexpr(7)
EACH_TERM = tl.constexpr(3)
"""Rows of ``state`` [OF_TERMS + EACH_TERM · terms, n]: log-sum-exps to base 2 (student's and teacher's at the temperature,
their difference, the student's without it), flags, the factor of q in the gradient, that of the cross-entropy; and of
each term log₂ Z, ΣH, and the factor of its gradient: 0 where it is infinite."""

COLUMNS = tl.constexpr(11)
"""Rows of ``mix`` [terms, COLUMNS, n or 1]: s, 1/s, λ, 1 − λ, slope for either anchor (teacher, student) where it
is linear, logarithms of the weights of p and of q alone, these less the larger, and 1 unless r is p or q itself."""

MASKED_ROW = tl.constexpr(1)
NO_MEETING = tl.constexpr(2)
NO_STUDENT = tl.constexpr(4)
NO_TEACHER = tl.constexpr(8)
"""Flags: some token is masked; none is left to both; none is left to one side."""

FAR = tl.constexpr(40.0)
"""Exponents up to which the first sweep's sums are exact enough."""
NEAR_ONE = tl.constexpr(0.4)
"""Where |Z − 1| is below, the normaliser is summed as a difference to 1."""
TINY = tl.constexpr(1e-20)
"""A normaliser below may have lost tokens to underflow."""


@triton.jit
def _at(index, token):
    """The row of a token; 64 bits, since N·V may pass 2³¹."""
    if index is None:
        return token.to(tl.int64)
    else:
        return tl.load(index + token)


@triton.jit
def _logits(base, columns, V, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(base + columns, mask=columns < V, other=-INFINITY).to(tl.float32)
    else:
        return tl.load(base + columns).to(tl.float32)


@triton.jit
def _fold(x, BLOCK: tl.constexpr):
    return tl.sum(tl.reshape(x, (BLOCK // FOLD, FOLD)), axis=1)


@triton.jit
def _none(BLOCK: tl.constexpr):
    return tl.zeros((BLOCK // FOLD,), dtype=tl.float32)


@triton.jit
def _opened(
    found,
    sides,
    at,
    tops,
    V,
    factor,
    BOTH: tl.constexpr,
    TEMPERED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of `_exponentials`."""
    sum_s, sum_t, plain, high_s, high_t, low, meet = found
    columns = at + tl.arange(0, BLOCK)
    zs = _logits(sides[0], columns, V, MASKED)
    sum_s += _fold(tl.exp2(zs * factor - tops[0] * factor), BLOCK)
    high_s = tl.maximum(high_s, zs)
    if TEMPERED:
        plain += _fold(tl.exp2(zs * LOG2E - tops[0] * LOG2E), BLOCK)
    common = zs
    if BOTH:
        zt = _logits(sides[1], columns, V, MASKED)
        sum_t += _fold(tl.exp2(zt * factor - tops[1] * factor), BLOCK)
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
    found = (_none(BLOCK), _none(BLOCK), _none(BLOCK), lowest, lowest, -lowest, lowest)
    whole = V // BLOCK * BLOCK
    for at in range(0, whole, BLOCK):
        found = _opened(found, sides, at, tops, V, factor, BOTH, TEMPERED, False, BLOCK)
    for at in range(whole, V, BLOCK):
        found = _opened(found, sides, at, tops, V, factor, BOTH, TEMPERED, True, BLOCK)
    sum_s, sum_t, plain, high_s, high_t, low, meet = found
    return (
        tl.sum(sum_s, axis=0),
        tl.sum(sum_t, axis=0),
        tl.sum(plain, axis=0),
        tl.max(high_s, axis=0),
        tl.max(high_t, axis=0),
        tl.min(low, axis=0),
        tl.max(meet, axis=0),
    )


@triton.jit
def _first_top(base, V, BLOCK: tl.constexpr):
    """The largest of the first logits; 0 where all of them are masked."""
    top = tl.max(_logits(base, tl.arange(0, BLOCK), V, True), axis=0)
    return tl.where(top == -INFINITY, 0.0, top)


@triton.jit
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
    """What does not depend on a term; the outputs start as the cross-entropy's share.

    Exponentials are taken less the largest of the row's first logits, which saves one for every logit; where the true
    maximum is far from it, the row is read again.
    """
    token = tl.program_id(0)
    own = student + _at(student_rows, token) * student_stride
    top_s = _first_top(own, V, BLOCK)
    BOTH: tl.constexpr = teacher is not None
    if BOTH:
        other = teacher + _at(teacher_rows, token) * teacher_stride
        top_t = _first_top(other, V, BLOCK)
    else:
        other = own
        top_t = top_s
    sides = (own, other)
    sum_s, sum_t, plain, high_s, high_t, low, meet = _exponentials(
        sides, (top_s, top_t), V, factor, BOTH, TEMPERED, BLOCK
    )
    true_s = tl.where(high_s == -INFINITY, 0.0, high_s)
    true_t = tl.where(high_t == -INFINITY, 0.0, high_t) if BOTH else top_t
    if tl.maximum(tl.abs(true_s - top_s), tl.abs(true_t - top_t)) * tl.maximum(factor, LOG2E) > FAR:
        top_s = true_s
        top_t = true_t
        sum_s, sum_t, plain, high_s, high_t, low, meet = _exponentials(
            sides, (top_s, top_t), V, factor, BOTH, TEMPERED, BLOCK
        )
    empty_s = high_s == -INFINITY
    sum_s = tl.where(empty_s, 1.0, sum_s)
    tl.store(state + LSE_STUDENT * count + token, top_s * factor + tl.log2(sum_s))
    flags = tl.where(low == -INFINITY, MASKED_ROW, 0) + tl.where(empty_s, NO_STUDENT, 0)
    if BOTH:
        empty_t = high_t == -INFINITY
        sum_t = tl.where(empty_t, 1.0, sum_t)
        flags += tl.where(empty_t, NO_TEACHER, 0) + tl.where(meet == -INFINITY, NO_MEETING, 0)
        tl.store(state + LSE_TEACHER * count + token, top_t * factor + tl.log2(sum_t))
        # These products are those that the sums were taken with, so that of two equal sides nothing is left.
        tl.store(state + APART * count + token, (top_t * factor - top_s * factor) + tl.log2(sum_t / sum_s))
    tl.store(state + FLAGS * count + token, flags.to(tl.float32))
    if labels is None:
        loss = 0.0
        pull = 0.0
    else:
        label = tl.load(labels + token)
        z = tl.load(own + tl.maximum(label, 0)).to(tl.float32)
        plain = tl.where(empty_s, 1.0, plain if TEMPERED else sum_s)
        loss = tl.where(z == -INFINITY, INFINITY, (top_s - z) + tl.log2(plain) * LN2)
        loss = tl.where(label >= 0, loss, 0.0)
        pull = tl.where((label >= 0) & (loss != INFINITY), weight, 0.0)
        if scale is not None:
            pull *= tl.load(scale + token)
        tl.store(state + HARD * count + token, pull)
        tl.store(state + LSE_PLAIN * count + token, top_s * LOG2E + tl.log2(plain))
        if TEMPERED:
            pull = 0.0
    tl.store(state + PULL * count + token, pull)
    tl.store(values + token, tl.where(loss == 0.0, 0.0, weight * loss) if labels is not None else 0.0)
    if divergences is not None:
        tl.store(divergences + token, 0.0)
    if cross_entropies is not None:
        tl.store(cross_entropies + token, loss)


@triton.jit
def _row(state, count, token):
    """Log-sum-exps of student and teacher and their difference, and the flags."""
    lse_s = tl.load(state + LSE_STUDENT * count + token)
    lse_t = tl.load(state + LSE_TEACHER * count + token)
    apart = tl.load(state + APART * count + token)
    return (lse_s, lse_t, apart), tl.load(state + FLAGS * count + token).to(tl.int32)


@triton.jit
def _mix(mix, number, mix_count, token, flags, STUDENT: tl.constexpr):
    """The numbers of a term's assistant, as `mixture` takes them, and 1 unless the assistant is a source itself."""
    at = mix + number * (COLUMNS * mix_count) + tl.where(mix_count == 1, 0, token)
    apart = (flags & NO_MEETING) != 0
    # Of sources that share no token only the difference of the two matters; the larger may leave no digit of the rest.
    level_p = tl.load(at + tl.where(apart, 8, 6) * mix_count)
    level_q = tl.load(at + tl.where(apart, 9, 7) * mix_count)
    slope = tl.load(at + (5 if STUDENT else 4) * mix_count)
    s, inverse = tl.load(at), tl.load(at + mix_count)
    lam, rest = tl.load(at + 2 * mix_count), tl.load(at + 3 * mix_count)
    return (s, inverse, lam, rest, slope, level_p, level_q), tl.load(at + 10 * mix_count)


@triton.jit
def _whole(flags, V, BLOCK: tl.constexpr):
    """How far blocks are whole and nothing is masked."""
    return tl.where((flags & MASKED_ROW) != 0, 0, V // BLOCK * BLOCK)


@triton.jit
def _mixed(
    sides,
    at,
    V,
    row,
    mix,
    factor,
    STUDENT: tl.constexpr,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`mixture` of one block."""
    columns = at + tl.arange(0, BLOCK)
    zs, zt = _logits(sides[0], columns, V, MASKED), _logits(sides[1], columns, V, MASKED)
    return mixture(zs, zt, row, mix, factor, STUDENT, KIND, MASKED, PTX)


@triton.jit
def _far_normaliser(
    sides, V, row, mix, factor, STUDENT: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr
):
    """log₂ Z by its largest part, for a mixture whose mass underflows; −inf without any support."""
    high = tl.full((BLOCK,), -INFINITY, tl.float32)
    for at in range(0, V, BLOCK):
        log_k, ratio, log_m, omega, has_k, live = _mixed(
            sides, at, V, row, mix, factor, STUDENT, KIND, True, PTX, BLOCK
        )
        high = tl.maximum(high, log_m)
    top = tl.max(high, axis=0)
    top = tl.where(top == -INFINITY, 0.0, top)
    total = _none(BLOCK)
    for at in range(0, V, BLOCK):
        log_k, ratio, log_m, omega, has_k, live = _mixed(
            sides, at, V, row, mix, factor, STUDENT, KIND, True, PTX, BLOCK
        )
        total += _fold(tl.exp2(log_m - top), BLOCK)
    return top + tl.log2(tl.sum(total, axis=0))


@triton.jit
def _weighed(
    found,
    sides,
    at,
    V,
    row,
    mix,
    factor,
    STUDENT: tl.constexpr,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of `_normaliser`."""
    change, mass = found
    log_k, ratio, log_m, omega, has_k, live = _mixed(sides, at, V, row, mix, factor, STUDENT, KIND, MASKED, PTX, BLOCK)
    k, m, log_r, x, line, near, bend, rise = beside(log_k, ratio, log_m, 0.0, has_k, live, MASKED)
    return change + _fold(rise, BLOCK), mass + _fold(m, BLOCK)


@triton.jit
def _normaliser(
    sides, V, row, flags, mix, factor, STUDENT: tl.constexpr, KIND: tl.constexpr, PTX: tl.constexpr, BLOCK: tl.constexpr
):
    """log₂ Z; −inf without any support."""
    found = (_none(BLOCK), _none(BLOCK))
    whole = _whole(flags, V, BLOCK)
    for at in range(0, whole, BLOCK):
        found = _weighed(found, sides, at, V, row, mix, factor, STUDENT, KIND, False, PTX, BLOCK)
    for at in range(whole, V, BLOCK):
        found = _weighed(found, sides, at, V, row, mix, factor, STUDENT, KIND, True, PTX, BLOCK)
    change, mass = tl.sum(found[0], axis=0), tl.sum(found[1], axis=0)
    normaliser = tl.where(tl.abs(change) < NEAR_ONE, log2_of_1_and(change), tl.log2(mass))
    if mass < TINY:
        normaliser = _far_normaliser(sides, V, row, mix, factor, STUDENT, KIND, PTX, BLOCK)
    return normaliser


@triton.jit
def _summed(
    found,
    sides,
    at,
    V,
    row,
    mix,
    factor,
    normaliser,
    FORM: tl.constexpr,
    STUDENT: tl.constexpr,
    FIRST: tl.constexpr,
    KIND: tl.constexpr,
    LEARNS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    SERIES: tl.constexpr,
    MASKED: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of `_sums`."""
    change, mass, values, first, second, third, fourth, bad = found
    log_k, ratio, log_m, omega, has_k, live = _mixed(sides, at, V, row, mix, factor, STUDENT, KIND, MASKED, PTX, BLOCK)
    both = beside(log_k, ratio, log_m, normaliser, has_k, live, MASKED)
    value, to_k, to_r, infinite = compare(both, log_k, has_k, live, FORM, FIRST, A, B, SERIES, MASKED, PTX)
    k, r, log_r, x, line, near, bend, rise = both
    values += _fold(value, BLOCK)
    if FORM == KL:
        change += _fold(rise, BLOCK)
        mass += _fold(r, BLOCK)
    if FORM == KL and FIRST:
        if LEARNS:
            first += _fold(omega * rise, BLOCK)
            second += _fold(omega * k, BLOCK)
            third += _fold(omega * r, BLOCK)
        if STUDENT:
            fourth += _fold(line, BLOCK)
    else:
        first += _fold(to_r, BLOCK)
        slope = to_k if STUDENT and FORM != KL else tl.zeros_like(to_k)
        if LEARNS:
            slope += omega * to_r
            third += _fold(omega * r, BLOCK)
        second += _fold(slope, BLOCK)
    if MASKED or min(A, B, A + B) < 0.0:
        bad += _fold(tl.where(infinite, 1.0, 0.0), BLOCK)
    return change, mass, values, first, second, third, fourth, bad


@triton.jit
def _sums(
    sides,
    V,
    row,
    flags,
    mix,
    factor,
    normaliser,
    FORM: tl.constexpr,
    STUDENT: tl.constexpr,
    FIRST: tl.constexpr,
    KIND: tl.constexpr,
    LEARNS: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    SERIES: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums of a term over a row, r being m/Z with Z as given. With G and H the slopes to log k and log r:

    Z' − 1 and Z' = Σr of the given r; ΣD; of KL(k‖r) Σω(r−k), Σωk, Σωr and Σ k log(r/k), of all others ΣH,
    Σ(G + ωH) (without G, whose sum is 0, of KL(r‖k)) and Σωr; and whether D is infinite.
    """
    zero = _none(BLOCK)
    found = (zero, zero, zero, zero, zero, zero, zero, zero)
    whole = _whole(flags, V, BLOCK)
    for at in range(0, whole, BLOCK):
        found = _summed(
            found,
            sides,
            at,
            V,
            row,
            mix,
            factor,
            normaliser,
            FORM,
            STUDENT,
            FIRST,
            KIND,
            LEARNS,
            A,
            B,
            SERIES,
            False,
            PTX,
            BLOCK,
        )
    for at in range(whole, V, BLOCK):
        found = _summed(
            found,
            sides,
            at,
            V,
            row,
            mix,
            factor,
            normaliser,
            FORM,
            STUDENT,
            FIRST,
            KIND,
            LEARNS,
            A,
            B,
            SERIES,
            True,
            PTX,
            BLOCK,
        )
    change, mass, values, first, second, third, fourth, bad = found
    return (
        tl.sum(change, axis=0),
        tl.sum(mass, axis=0),
        tl.sum(values, axis=0),
        tl.sum(first, axis=0),
        tl.sum(second, axis=0),
        tl.sum(third, axis=0),
        tl.sum(fourth, axis=0),
        tl.sum(bad, axis=0),
    )


@triton.jit
def term_sums(
    student,
    student_rows,
    student_stride,
    teacher,
    teacher_rows,
    teacher_stride,
    scale,
    mix,
    mix_count,
    state,
    values,
    divergences,
    count,
    V,
    factor,
    weight,
    slope_weight,
    number,
    SPEC: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds a term to the values and to the factor of q, and leaves what `write_gradient` needs of it in ``state``.

    The sums of KL are homogeneous in Z, so they are taken of r = m, and corrected once Z is known.
    """
    FORM: tl.constexpr = SPEC[0]
    STUDENT: tl.constexpr = SPEC[1]
    FIRST: tl.constexpr = SPEC[2]
    KIND: tl.constexpr = SPEC[3]
    LEARNS: tl.constexpr = SPEC[4]
    A: tl.constexpr = SPEC[5]
    B: tl.constexpr = SPEC[6]
    SERIES: tl.constexpr = SPEC[7]
    token = tl.program_id(0)
    own = student + _at(student_rows, token) * student_stride
    other = teacher + _at(teacher_rows, token) * teacher_stride
    sides = (own, other)
    row, flags = _row(state, count, token)
    numbers, mixed = _mix(mix, number, mix_count, token, flags, STUDENT)
    if FORM == KL:
        normaliser = 0.0
        change, mass, value, first, second, third, fourth, bad = _sums(
            sides,
            V,
            row,
            flags,
            numbers,
            factor,
            normaliser,
            FORM,
            STUDENT,
            FIRST,
            KIND,
            LEARNS,
            A,
            B,
            SERIES,
            PTX,
            BLOCK,
        )
        if mass < TINY:
            normaliser = _far_normaliser(sides, V, row, numbers, factor, STUDENT, KIND, PTX, BLOCK)
            known = tl.where(normaliser == -INFINITY, 0.0, normaliser)
            change, mass, value, first, second, third, fourth, bad = _sums(
                sides,
                V,
                row,
                flags,
                numbers,
                factor,
                known,
                FORM,
                STUDENT,
                FIRST,
                KIND,
                LEARNS,
                A,
                B,
                SERIES,
                PTX,
                BLOCK,
            )
        nowhere = normaliser == -INFINITY
        mass = tl.where(nowhere | (mixed == 0.0), 1.0, mass)
        change = tl.where(nowhere | (mixed == 0.0), 0.0, change)
        near = tl.abs(change) < NEAR_ONE
        mass = tl.where(near, 1.0 + change, mass)
        rest = tl.where(near, log2_of_1_and(change), tl.log2(mass))
        normaliser += rest
        log_z = rest * LN2
        if FIRST:
            value -= tl.where(near, change, mass - 1.0) - log_z
            slope = tl.where(near, (first - change * second) / mass, third / mass - second)
            slope_r = 0.0
            if STUDENT:
                slope += log_z - fourth
        else:
            slope_r = first / mass - log_z
            value = tl.where(near, value / mass - (log_z - change / mass), slope_r)
            slope = (second - log_z * third) / mass - slope_r * (third / mass)
    else:
        if KIND == PURE:
            normaliser = 0.0
            nowhere = (flags & tl.where(numbers[2] == 0.0, NO_STUDENT, NO_TEACHER)) != 0
        else:
            normaliser = _normaliser(sides, V, row, flags, numbers, factor, STUDENT, KIND, PTX, BLOCK)
            nowhere = normaliser == -INFINITY
            normaliser = tl.where(nowhere | (mixed == 0.0), 0.0, normaliser)
        change, mass, value, slope_r, slope, third, fourth, bad = _sums(
            sides,
            V,
            row,
            flags,
            numbers,
            factor,
            normaliser,
            FORM,
            STUDENT,
            FIRST,
            KIND,
            LEARNS,
            A,
            B,
            SERIES,
            PTX,
            BLOCK,
        )
        slope -= slope_r * third
    nowhere |= (flags & (NO_STUDENT if STUDENT else NO_TEACHER)) != 0
    infinite = nowhere | (bad > 0.0)
    value = tl.where(infinite, INFINITY, weight * tl.maximum(value, 0.0))
    tl.store(values + token, tl.load(values + token) + value)
    if divergences is not None:
        tl.store(divergences + token, tl.load(divergences + token) + value)
    if scale is not None:
        slope_weight *= tl.load(scale + token)
    silent = infinite | ((flags & (NO_STUDENT | NO_TEACHER)) != 0)
    slope_weight = tl.where(silent, 0.0, slope_weight)
    of_term = state + (OF_TERMS + EACH_TERM * number) * count + token
    tl.store(of_term, tl.where(nowhere, 0.0, normaliser))
    tl.store(of_term + count, tl.where(silent, 0.0, slope_r))
    tl.store(of_term + 2 * count, slope_weight)
    pull = state + PULL * count + token
    tl.store(pull, tl.load(pull) - tl.where(silent, 0.0, slope_weight * slope))


@triton.jit
def _slopes(
    out,
    sides,
    at,
    V,
    row,
    terms,
    factor,
    pull,
    hard,
    lse_plain,
    label,
    SPECS: tl.constexpr,
    TERMS: tl.constexpr,
    LABELLED: tl.constexpr,
    TEMPERED: tl.constexpr,
    MASKED: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of `write_gradient`."""
    columns = at + tl.arange(0, BLOCK)
    zs = _logits(sides[0], columns, V, MASKED)
    total = tl.exp2(zs * factor - row[0]) * pull
    if LABELLED:
        if TEMPERED:
            total += tl.exp2(zs * LOG2E - lse_plain) * hard
        total -= tl.where(columns == label, hard, 0.0)
    if TERMS > 0:
        zt = _logits(sides[1], columns, V, MASKED)
    for j in tl.static_range(TERMS):
        FORM: tl.constexpr = SPECS[j][0]
        STUDENT: tl.constexpr = SPECS[j][1]
        FIRST: tl.constexpr = SPECS[j][2]
        KIND: tl.constexpr = SPECS[j][3]
        LEARNS: tl.constexpr = SPECS[j][4]
        A: tl.constexpr = SPECS[j][5]
        B: tl.constexpr = SPECS[j][6]
        SERIES: tl.constexpr = SPECS[j][7]
        mix, normaliser, slope_r, weight = terms[j]
        log_k, ratio, log_m, omega, has_k, live = mixture(zs, zt, row, mix, factor, STUDENT, KIND, MASKED, PTX)
        both = beside(log_k, ratio, log_m, normaliser, has_k, live, MASKED)
        value, to_k, to_r, infinite = compare(both, log_k, has_k, live, FORM, FIRST, A, B, SERIES, MASKED, PTX)
        slope = to_k if STUDENT else tl.zeros_like(to_k)
        if LEARNS:
            if FORM == KL and FIRST:
                slope += omega * to_r
            else:
                slope += omega * (to_r - both[1] * slope_r)
        total += tl.where(weight == 0.0, 0.0, weight * slope)
    tl.store(out + columns, total.to(out.dtype.element_ty), mask=columns < V if MASKED else None)


@triton.jit
def write_gradient(
    student,
    student_rows,
    student_stride,
    teacher,
    teacher_rows,
    teacher_stride,
    gradient,
    gradient_stride,
    labels,
    mix,
    mix_count,
    state,
    count,
    V,
    width,
    factor,
    SPECS: tl.constexpr,
    TERMS: tl.constexpr,
    TEMPERED: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dL/dz. The second axis of the grid shares a row out, ``width`` columns each."""
    token = tl.program_id(0)
    at_student = _at(student_rows, token)
    own = student + at_student * student_stride
    out = gradient + at_student * gradient_stride
    other = own
    if TERMS > 0:
        other = teacher + _at(teacher_rows, token) * teacher_stride
    row, flags = _row(state, count, token)
    pull = tl.load(state + PULL * count + token)
    hard = 0.0
    lse_plain = 0.0
    label = 0
    LABELLED: tl.constexpr = labels is not None
    if LABELLED:
        label = tl.load(labels + token)
        hard = tl.load(state + HARD * count + token)
        lse_plain = tl.load(state + LSE_PLAIN * count + token)
    terms = ()
    for j in tl.static_range(TERMS):
        numbers, mixed = _mix(mix, j, mix_count, token, flags, SPECS[j][1])
        of_term = state + (OF_TERMS + EACH_TERM * j) * count + token
        terms = terms + ((numbers, tl.load(of_term), tl.load(of_term + count), tl.load(of_term + 2 * count)),)
    start = tl.program_id(1) * width
    stop = tl.minimum(start + width, V)
    whole = tl.where((flags & MASKED_ROW) != 0, start, stop // BLOCK * BLOCK)
    for at in range(start, whole, BLOCK):
        _slopes(
            out,
            (own, other),
            at,
            V,
            row,
            terms,
            factor,
            pull,
            hard,
            lse_plain,
            label,
            SPECS,
            TERMS,
            LABELLED,
            TEMPERED,
            False,
            PTX,
            BLOCK,
        )
    for at in range(whole, stop, BLOCK):
        _slopes(
            out,
            (own, other),
            at,
            V,
            row,
            terms,
            factor,
            pull,
            hard,
            lse_plain,
            label,
            SPECS,
            TERMS,
            LABELLED,
            TEMPERED,
            True,
            PTX,
            BLOCK,
        )


@triton.jit
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
    KIND: tl.constexpr,
    PTX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The rows of ``MEASURED``; those of the assistant unless ``KIND`` is None. Runs after the term's own sums."""
    token = tl.program_id(0)
    own = student + _at(student_rows, token) * student_stride
    other = teacher + _at(teacher_rows, token) * teacher_stride
    row, flags = _row(state, count, token)
    numbers, mixed = _mix(mix, number, mix_count, token, flags, False)
    normaliser = 0.0
    if KIND is not None:
        normaliser = tl.load(state + (OF_TERMS + EACH_TERM * number) * count + token)
    zero = tl.zeros((BLOCK,), dtype=tl.float32)
    forward, backward, of_p, of_q, of_r, share, only_p, only_q = zero, zero, zero, zero, zero, zero, zero, zero
    best_s, best_t = zero - INFINITY, zero - INFINITY
    at_s, at_t = tl.zeros((BLOCK,), dtype=tl.int32), tl.zeros((BLOCK,), dtype=tl.int32)
    for at in range(0, V, BLOCK):
        columns = at + tl.arange(0, BLOCK)
        zs, zt = _logits(own, columns, V, True), _logits(other, columns, V, True)
        has_q, has_p = zs > -INFINITY, zt > -INFINITY
        at_s, at_t = tl.where(zs > best_s, columns, at_s), tl.where(zt > best_t, columns, at_t)
        best_s, best_t = tl.maximum(best_s, zs), tl.maximum(best_t, zt)
        delta = tl.where(has_p & has_q, (zt - zs) * factor - row[2], 0.0)
        log_p, log_q = zt * factor - row[1], zs * factor - row[0]
        p, q, log_r, x, line, near, bend, rise = beside(log_p, -delta, log_q, 0.0, has_p, has_q, True)
        forward += tl.where(near, bend, tl.maximum(rise - line, 0.0))
        backward += tl.where(near, rise * x - bend, tl.maximum(q * x - rise, 0.0))
        only_p += tl.where(has_p & (has_q == 0), 1.0, 0.0)
        only_q += tl.where(has_q & (has_p == 0), 1.0, 0.0)
        of_p -= tl.where(has_p, p * log_p, 0.0)
        of_q -= tl.where(has_q, q * log_q, 0.0)
        if KIND is not None:
            log_k, ratio, log_m, omega, has_k, live = mixture(zs, zt, row, numbers, factor, False, KIND, True, PTX)
            of_r -= tl.where(live, tl.exp2(log_m - normaliser) * (log_m - normaliser), 0.0)
            share += p * omega
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
    if KIND is not None:
        out += metrics_stride
        tl.store(out, tl.sum(of_r, axis=0) * LN2)
        out += metrics_stride
        tl.store(out, tl.sum(share, axis=0))
