# mypy: ignore-errors
"""The Triton kernels: sweeps over V, one program for each token. `triton_rows` launches them.

    log_sums        the exponentials' sums, the cross-entropy, and whether anything is masked (`triton_open`)
    term_sums       a term's normaliser, its value, and the sums that its gradient needs
    write_gradient  A − q ΣA of all terms
    measure_rows    the numbers of ``Block.metrics`` (`triton_measure`)

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
    OF_A,
    OF_ANCHOR,
    OF_B,
    OF_FORM,
    OF_KIND,
    OF_LEARNS,
    OF_ORDER,
    PURE,
    SPECS,
    beside,
    compare,
    log2_of_1_and,
    mixture,
)
from amidkd.kernels.triton_measure import measure_rows
from amidkd.kernels.triton_open import (
    COLUMNS,
    EACH_TERM,
    HARD,
    LOG_PLAIN,
    MASKED_ROW,
    NO_STUDENT,
    NO_TEACHER,
    OF_TERMS,
    PULL,
    fold,
    log_sums,
    logits,
    mix_of,
    none,
    open_row,
    row_of,
    whole_blocks,
)

__all__ = [
    "COLUMNS",
    "EACH_TERM",
    "INTERPRETED",
    "OF_TERMS",
    "log_sums",
    "measure_rows",
    "term_sums",
    "write_gradient",
]

INTERPRETED = not isinstance(log_sums, triton.JITFunction)
"""Whether the kernels were made for triton's interpreter, which runs them on the CPU."""

NEAR_ONE = tl.constexpr(0.4)
"""Where |Z − 1| is below, the normaliser is summed as a difference to 1."""
TINY = tl.constexpr(1e-20)
"""A normaliser below may have lost tokens to underflow."""


@triton.jit
def _mixed(sides, at, V, row, mix, SPEC: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """`mixture` of one block."""
    columns = at + tl.arange(0, BLOCK)
    zs, zt = logits(sides[0], columns, V, MASKED), logits(sides[1], columns, V, MASKED)
    return mixture(zs, zt, row, mix, SPEC, 0, MASKED)


@triton.jit
def _far_normaliser(sides, V, row, mix, SPEC: tl.constexpr, BLOCK: tl.constexpr):
    """log₂ Z by its largest part, for a mixture whose mass underflows; −inf without any support."""
    high = tl.full((BLOCK,), -INFINITY, tl.float32)
    for at in range(0, V, BLOCK):
        high = tl.maximum(high, _mixed(sides, at, V, row, mix, SPEC, True, BLOCK)[2])
    top = tl.max(high, axis=0)
    top = tl.where(top == -INFINITY, 0.0, top)
    total = none(BLOCK)
    for at in range(0, V, BLOCK):
        total += fold(tl.exp2(_mixed(sides, at, V, row, mix, SPEC, True, BLOCK)[2] - top), BLOCK)
    return top + tl.log2(tl.sum(total, axis=0))


@triton.jit
def _weighed(found, sides, at, V, row, mix, SPEC: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """One block of `_normaliser`."""
    both = beside(_mixed(sides, at, V, row, mix, SPEC, MASKED, BLOCK), 0.0, MASKED)
    return found[0] + fold(both[2], BLOCK), found[1] + fold(both[1], BLOCK)


@triton.jit
def _normaliser(sides, V, row, flags, mix, SPEC: tl.constexpr, BLOCK: tl.constexpr):
    """log₂ Z; −inf without any support."""
    found = (none(BLOCK), none(BLOCK))
    whole = whole_blocks(flags, V, BLOCK)
    for at in range(0, whole, BLOCK):
        found = _weighed(found, sides, at, V, row, mix, SPEC, False, BLOCK)
    for at in range(whole, V, BLOCK):
        found = _weighed(found, sides, at, V, row, mix, SPEC, True, BLOCK)
    change, mass = tl.sum(found[0], axis=0), tl.sum(found[1], axis=0)
    normaliser = tl.where(tl.abs(change) < NEAR_ONE, log2_of_1_and(change), tl.log2(mass))
    if mass < TINY:
        normaliser = _far_normaliser(sides, V, row, mix, SPEC, BLOCK)
    return normaliser


@triton.jit
def _summed(found, sides, at, V, row, mix, normaliser, SPEC: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    """One block of `_sums`."""
    FORM: tl.constexpr = SPEC[OF_FORM]
    STUDENT: tl.constexpr = SPEC[OF_ANCHOR]
    FIRST: tl.constexpr = SPEC[OF_ORDER]
    LEARNS: tl.constexpr = SPEC[OF_LEARNS]
    A: tl.constexpr = SPEC[OF_A]
    B: tl.constexpr = SPEC[OF_B]
    change, mass, values, first, second, third, fourth, bad = found
    mixed = _mixed(sides, at, V, row, mix, SPEC, MASKED, BLOCK)
    both = beside(mixed, normaliser, MASKED)
    value, to_k, to_r, infinite = compare(mixed, both, SPEC, 0, MASKED)
    omega, k, r, rise = mixed[3], both[0], both[1], both[2]
    values += fold(value, BLOCK)
    if FORM == KL:
        change += fold(rise, BLOCK)
        mass += fold(r, BLOCK)
    if FORM == KL and FIRST:
        if LEARNS:
            first += fold(omega * rise, BLOCK)
            second += fold(omega * k, BLOCK)
            third += fold(omega * r, BLOCK)
        if STUDENT:
            fourth += fold(both[4], BLOCK)
    else:
        first += fold(to_r, BLOCK)
        slope = to_k if STUDENT and FORM != KL else tl.zeros_like(to_k)
        if LEARNS:
            slope += omega * to_r
            third += fold(omega * r, BLOCK)
        second += fold(slope, BLOCK)
    if MASKED or (A < 0.0 or (B < 0.0 or A + B < 0.0)):
        bad += fold(tl.where(infinite, 1.0, 0.0), BLOCK)
    return change, mass, values, first, second, third, fourth, bad


@triton.jit
def _sums(sides, V, row, flags, mix, normaliser, SPEC: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of a term over a row, r being m/Z with Z as given. With G and H the slopes to log k and log r:

    Z' − 1 and Z' = Σr of the given r (of KL alone); ΣD; of KL(k‖r) Σω(r−k), Σωk, Σωr and Σ k log(r/k), of all others
    ΣH, Σ(G + ωH) (of KL(r‖k) without G, whose sum is 0) and Σωr; and whether D is infinite.
    """
    zero = none(BLOCK)
    found = (zero, zero, zero, zero, zero, zero, zero, zero)
    whole = whole_blocks(flags, V, BLOCK)
    for at in range(0, whole, BLOCK):
        found = _summed(found, sides, at, V, row, mix, normaliser, SPEC, False, BLOCK)
    for at in range(whole, V, BLOCK):
        found = _summed(found, sides, at, V, row, mix, normaliser, SPEC, True, BLOCK)
    change, mass, values = tl.sum(found[0], axis=0), tl.sum(found[1], axis=0), tl.sum(found[2], axis=0)
    first, second, third = tl.sum(found[3], axis=0), tl.sum(found[4], axis=0), tl.sum(found[5], axis=0)
    return change, mass, values, first, second, third, tl.sum(found[6], axis=0), tl.sum(found[7], axis=0)


@triton.jit(do_not_specialize=["count", "number"])
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
    BLOCK: tl.constexpr,
):
    """Adds a term to the values and to the factor of q, and leaves in ``state`` what `write_gradient` needs of it.

    The sums of KL are homogeneous in Z, so they are taken of r = m, and corrected once Z is known.
    """
    STUDENT: tl.constexpr = SPEC[OF_ANCHOR]
    token = tl.program_id(0)
    own = student + row_of(student_rows, token) * student_stride
    sides = own, teacher + row_of(teacher_rows, token) * teacher_stride
    row, flags = open_row(state, count, token, factor)
    numbers = mix_of(mix, number, mix_count, token, flags, STUDENT)
    pure = numbers[7] == 0.0
    if SPEC[OF_FORM] == KL:
        normaliser = 0.0
        change, mass, value, first, second, third, fourth, bad = _sums(
            sides, V, row, flags, numbers, normaliser, SPEC, BLOCK
        )
        if mass < TINY:
            normaliser = _far_normaliser(sides, V, row, numbers, SPEC, BLOCK)
            known = tl.where(normaliser == -INFINITY, 0.0, normaliser)
            change, mass, value, first, second, third, fourth, bad = _sums(
                sides, V, row, flags, numbers, known, SPEC, BLOCK
            )
        nowhere = normaliser == -INFINITY
        change = tl.where(nowhere | pure, 0.0, change)
        near = tl.abs(change) < NEAR_ONE
        mass = tl.where(near, 1.0 + change, mass)
        rest = tl.where(near, log2_of_1_and(change), tl.log2(mass))
        normaliser += rest
        log_z = rest * LN2
        if SPEC[OF_ORDER]:
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
        if SPEC[OF_KIND] == PURE:
            normaliser = 0.0
            nowhere = (flags & tl.where(numbers[2] == 0.0, NO_STUDENT, NO_TEACHER)) != 0
        else:
            normaliser = _normaliser(sides, V, row, flags, numbers, SPEC, BLOCK)
            nowhere = normaliser == -INFINITY
            normaliser = tl.where(nowhere | pure, 0.0, normaliser)
        change, mass, value, slope_r, slope, third, fourth, bad = _sums(
            sides, V, row, flags, numbers, normaliser, SPEC, BLOCK
        )
        slope -= slope_r * third
    nowhere |= (flags & (NO_STUDENT if STUDENT else NO_TEACHER)) != 0
    infinite = nowhere | (bad > 0.0)
    value = tl.where(infinite, INFINITY, weight * tl.maximum(value, 0.0))
    # A logit that is NaN or +inf makes NaN of its side's sum, which no comparison above may hide.
    sound = row[2] + row[3]
    value = tl.where(sound == sound, value, sound)
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
def _slope(zs, zt, row, term, SPEC: tl.constexpr, AT: tl.constexpr, MASKED: tl.constexpr):
    """A of one term, with its weight."""
    mix, normaliser, slope_r, weight = term
    mixed = mixture(zs, zt, row, mix, SPEC, AT, MASKED)
    both = beside(mixed, normaliser, MASKED)
    slopes = compare(mixed, both, SPEC, AT, MASKED)
    slope = slopes[1] if SPEC[AT + OF_ANCHOR] else tl.zeros_like(zs)
    if SPEC[AT + OF_LEARNS]:
        if SPEC[AT + OF_FORM] == KL and SPEC[AT + OF_ORDER]:
            slope += mixed[3] * slopes[2]
        else:
            slope += mixed[3] * (slopes[2] - both[1] * slope_r)
    return tl.where(weight == 0.0, 0.0, weight * slope)


@triton.jit
def _slopes(
    out,
    sides,
    at,
    V,
    row,
    pull,
    hard,
    terms,
    SPEC: tl.constexpr,
    CROSS: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of `write_gradient`; ``hard``: factor, logarithm and label of the cross-entropy.

    ``CROSS``: 0 without cross-entropy; 2 where its softmax is another than the terms'; else 1.
    """
    columns = at + tl.arange(0, BLOCK)
    zs = logits(sides[0], columns, V, MASKED)
    total = tl.exp2((zs - row[0]) * row[5] - row[2]) * pull
    if CROSS > 0:
        if CROSS > 1:
            total += tl.exp2((zs - row[0]) * LOG2E - hard[1]) * hard[0]
        total -= tl.where(columns == hard[2], hard[0], 0.0)
    TERMS: tl.constexpr = len(SPEC) // SPECS
    if TERMS > 0:
        zt = logits(sides[1], columns, V, MASKED)
    for j in tl.static_range(TERMS):
        total += _slope(zs, zt, row, terms[j], SPEC, j * SPECS, MASKED)
    if MASKED:
        tl.store(out + columns, total.to(out.dtype.element_ty), mask=columns < V)
    else:
        tl.store(out + columns, total.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["count", "share"])
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
    share,
    factor,
    SPEC: tl.constexpr,
    TEMPERED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dL/dz. The second axis of the grid shares a row out, ``share`` blocks each."""
    token = tl.program_id(0)
    at_student = row_of(student_rows, token)
    own, out = student + at_student * student_stride, gradient + at_student * gradient_stride
    TERMS: tl.constexpr = len(SPEC) // SPECS
    other = own
    if TERMS > 0:
        other = teacher + row_of(teacher_rows, token) * teacher_stride
    row, flags = open_row(state, count, token, factor)
    pull = tl.load(state + PULL * count + token)
    CROSS: tl.constexpr = 0 if labels is None else 2 if TEMPERED else 1
    hard = 0.0, 0.0, 0
    if CROSS > 0:
        plain = tl.load(state + LOG_PLAIN * count + token)
        hard = tl.load(state + HARD * count + token), plain, tl.load(labels + token)
    terms = ()
    for j in tl.static_range(TERMS):
        of_term = state + (OF_TERMS + EACH_TERM * j) * count + token
        numbers = mix_of(mix, j, mix_count, token, flags, SPEC[j * SPECS + OF_ANCHOR])
        term = numbers, tl.load(of_term), tl.load(of_term + count), tl.load(of_term + 2 * count)
        terms = terms + (term,)  # noqa: RUF005 (triton has no other way)
    start = tl.program_id(1) * share * BLOCK
    stop = tl.minimum(start + share * BLOCK, V)
    whole = tl.where((flags & MASKED_ROW) != 0, start, stop // BLOCK * BLOCK)
    for at in range(start, whole, BLOCK):
        _slopes(out, (own, other), at, V, row, pull, hard, terms, SPEC, CROSS, False, BLOCK)
    for at in range(whole, stop, BLOCK):
        _slopes(out, (own, other), at, V, row, pull, hard, terms, SPEC, CROSS, True, BLOCK)
