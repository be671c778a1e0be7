# mypy: ignore-errors
# ruff: noqa: RET505 (of two branches chosen at compile time, each returns)
"""Mixture and divergences of a block of logits, for the Triton kernels. The formulas are those of `amidkd.maths`.

Logarithms are to base 2, so that a logit costs one multiplication. What a function is compiled for: the numbers that
begin at ``AT`` in ``SPEC`` (`amidkd.kernels.triton_rows.spec_of`), and ``MASKED``, whether a token may be masked.
"""

import triton
import triton.language as tl

from amidkd.kernels.terms import Form

__all__ = [
    "EACH",
    "GEOMETRIC",
    "INFINITY",
    "KL",
    "LN2",
    "LOG2E",
    "OF_A",
    "OF_ANCHOR",
    "OF_B",
    "OF_FORM",
    "OF_KIND",
    "OF_LEARNS",
    "OF_ORDER",
    "POWER",
    "PURE",
    "SERIES",
    "SPECS",
    "apart",
    "beside",
    "compare",
    "log2_of_1_and",
    "mixture",
]

OF_FORM = tl.constexpr(0)
OF_ANCHOR = tl.constexpr(1)
OF_ORDER = tl.constexpr(2)
OF_KIND = tl.constexpr(3)
OF_LEARNS = tl.constexpr(4)
OF_PTX = tl.constexpr(5)
OF_A = tl.constexpr(6)
OF_B = tl.constexpr(7)
OF_RADIUS = tl.constexpr(8)
OF_SERIES = tl.constexpr(9)
SERIES = tl.constexpr(9)
SPECS = tl.constexpr(18)
"""Where the numbers of a term are, ``SPECS`` in all: the form; whether the anchor k is the student; whether it comes
first; the assistant's kind; whether it depends on the student; whether the approximate instructions of an NVIDIA GPU
can be named (elsewhere logarithm and division may take many); of `Form.POWER` alone A, B, up to which |x| its series is
used, and the ``SERIES`` coefficients of that."""

PURE = tl.constexpr(0)
GEOMETRIC = tl.constexpr(1)
POWER = tl.constexpr(2)
EACH = tl.constexpr(3)
"""Kinds of assistant: teacher or student itself; α = 1; any other α; each token its own."""

KL = tl.constexpr(int(Form.KL))
JEFFREYS = tl.constexpr(int(Form.JEFFREYS))
TOTAL_VARIATION = tl.constexpr(int(Form.TOTAL_VARIATION))
JENSEN_SHANNON = tl.constexpr(int(Form.JENSEN_SHANNON))

INFINITY = tl.constexpr(float("inf"))
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)

CLOSE = tl.constexpr(0.25)
"""Where |x| is below, e^x − 1 and e^x − 1 − x are series."""
CLOSE_POWER = tl.constexpr(0.5)
"""Where x is below, 2^−x − 1 is one."""
CLOSE_TO_ONE = tl.constexpr(-0.25)
"""Where y is above, log(1 + y) is one."""
LARGE = tl.constexpr(1e38)
"""Logarithms are at most this large: the lowest finite logit, times log₂e, would be infinite."""
LARGEST_EXPONENT = tl.constexpr(99.14633)
"""log₂ of the largest float, less ``HEADROOM`` of `amidkd.maths.divergence.forms`."""


@triton.jit
def _log2(t, PTX: tl.constexpr):
    """log₂ t; near t = 1 to 1e-7 in absolute terms."""
    if PTX:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [t], tl.float32, is_pure=True, pack=1)
    else:
        return tl.log2(t)


@triton.jit
def _reciprocal(t, PTX: tl.constexpr):
    if PTX:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [t], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / t


@triton.jit
def _power_less_one(x, e):
    """2^−x − 1 for x ≥ 0 with all its digits, from e = 2^−x. The coefficients are a minimax fit."""
    near = (((-0.0011544522 * x + 0.0095412815) * x - 0.055490408) * x + 0.24022564) * x - 0.69314718
    return tl.where(x < CLOSE_POWER, near * x, e - 1.0)


@triton.jit
def _log_of(y, t, PTX: tl.constexpr):
    """log₂ t of t = 1 + y, −1 ≤ y ≤ 0, with all its digits near y = 0. The coefficients are a minimax fit."""
    near = ((((-0.49022421 * y + 0.20762555) * y - 0.37192595) * y + 0.48021063) * y - 0.72136265) * y + 1.442695
    return tl.where(y > CLOSE_TO_ONE, near * y, _log2(t, PTX))


@triton.jit
def _curvature(x):
    """(e^x − 1 − x)/x² for |x| ≤ ``CLOSE``. The coefficients are a minimax fit."""
    return (((0.0013895343 * x + 0.0083488394) * x + 0.041666716) * x + 0.16666642) * x + 0.5


@triton.jit
def log2_of_1_and(change):
    """log₂(1 + change) of a scalar, with all its digits near 0."""
    whole = 1.0 + change
    rounded = whole - 1.0
    return tl.where(rounded == 0.0, change * LOG2E, tl.log2(whole) * (change / tl.where(rounded == 0.0, 1.0, rounded)))


@triton.jit
def apart(zs, zt, row, MASKED: tl.constexpr):
    """log₂(p/q) (0 where one of them is not), log₂ p, log₂ q, whether p lives, and whether q does; as `mixture`."""
    top_s, top_t, log_s, log_t, ratio, factor = row
    # Differences of logits come first: they are exact where it matters, however large the logits are.
    delta = ((zt - zs) - (top_t - top_s)) * factor - ratio
    log_q = (zs - top_s) * factor - log_s
    log_p = (zt - top_t) * factor - log_t
    has_p, has_q = zt > -INFINITY, zs > -INFINITY
    if MASKED:
        delta = tl.where(has_p & has_q, tl.minimum(tl.maximum(delta, -LARGE), LARGE), 0.0)
        log_q = tl.where(has_q, tl.maximum(log_q, -LARGE), -INFINITY)
        log_p = tl.where(has_p, tl.maximum(log_p, -LARGE), -INFINITY)
    return delta, log_p, log_q, has_p, has_q


@triton.jit
def mixture(zs, zt, row, mix, SPEC: tl.constexpr, AT: tl.constexpr, MASKED: tl.constexpr):
    """The assistant before it is normalised, beside its anchor k.

    Args:
        zs: Logits of the student [BLOCK].
        zt: Logits of the teacher [BLOCK].
        row: What exponentials are taken less, of student and of teacher, log₂ of their sums, and of the ratio of these,
            all at the temperature, and log₂e / temperature.
        mix: s, 1/s, λ, 1 − λ, slope of log(m/k) in log(p/q) where it is linear, log₂ of what m is of p, and of q, where
            the other one is masked (−inf: nothing), and 1, or 0 where m is a source itself.
        SPEC: See above.
        AT: See above.
        MASKED: See above.

    Returns:
        log₂ k, log₂(m/k) (0 where one of them is not), log₂ m, ω, whether k lives, and whether m does. Without
        ``MASKED`` the last two are of no use.
    """
    STUDENT: tl.constexpr = SPEC[AT + OF_ANCHOR]
    KIND: tl.constexpr = SPEC[AT + OF_KIND]
    s, inverse, lam, rest, slope, level_p, level_q, _ = mix
    delta, log_p, log_q, has_p, has_q = apart(zs, zt, row, MASKED)
    both = has_p & has_q
    log_k, has_k = (log_q, has_q) if STUDENT else (log_p, has_p)
    if KIND <= GEOMETRIC:
        ratio = delta * slope
        log_m = lam * log_p + rest * log_q
        omega = tl.zeros_like(delta) + rest
    else:
        # Each token is measured from the source that dominates there, so that nothing overflows and no digit is lost.
        u = delta * s
        by_q = u <= 0.0
        size = tl.abs(u)
        e = tl.exp2(-size)
        weight = tl.where(by_q, lam, rest)
        t = weight * e + tl.where(by_q, rest, lam)
        core = _log_of(weight * _power_less_one(size, e), t, SPEC[AT + OF_PTX]) * inverse
        omega = tl.where(by_q, rest, rest * e) * _reciprocal(t, SPEC[AT + OF_PTX])
        log_m = tl.where(by_q, log_q, log_p) + core
        if KIND == EACH:
            log_m = tl.where(inverse == 0.0, lam * log_p + rest * log_q, log_m)
            ratio = core + tl.where(by_q, slope, 1.0 if STUDENT else 0.0) * delta
        elif STUDENT:
            ratio = tl.where(by_q, core, core + delta)
        else:
            ratio = tl.where(by_q, core - delta, core)
    live = both
    if MASKED:
        level = level_q if STUDENT else level_p
        log_m = tl.where(both, log_m, tl.where(has_q, log_q + level_q, log_p + level_p))
        live = log_m > -INFINITY
        ratio = tl.where(both, ratio, tl.where(has_k & live, level, 0.0))
        omega = tl.where(both, omega, tl.where(has_q & live, 1.0, 0.0))
    return log_k, ratio, log_m, omega, has_k, live


@triton.jit
def beside(mixed, normaliser, MASKED: tl.constexpr):
    """The assistant r = m/Z beside its anchor.

    Args:
        mixed: What `mixture` returned.
        normaliser: log₂ Z.
        MASKED: See above.

    Returns:
        k, r, r − k, x = log(r/k), k x, whether |x| is small, k (e^x − 1 − x) where it is, and log₂ r.
    """
    log_k, ratio, log_r = mixed[0], mixed[1] - normaliser, mixed[2] - normaliser
    if MASKED:
        both = mixed[4] & mixed[5]
        ratio = tl.where(both, ratio, 0.0)
    k, r = tl.exp2(log_k), tl.exp2(log_r)
    x = ratio * LN2
    near = tl.abs(x) < CLOSE
    if MASKED:
        near &= both
    line = k * x
    bend = line * x * _curvature(x)
    return k, r, tl.where(near, line + bend, r - k), x, line, near, bend, log_r


@triton.jit
def _difference(start, log_to, x):
    """2^log_to − start, from x = log(2^log_to/start)."""
    return tl.where(tl.abs(x) < CLOSE, start * (x + x * x * _curvature(x)), tl.exp2(log_to) - start)


@triton.jit
def _power(a, log_a, log_b, x, rise, SPEC: tl.constexpr, AT: tl.constexpr):
    """A power divergence's part, its slopes, and whether it passes float32's range; as `maths.divergence.forms`."""
    A: tl.constexpr = SPEC[AT + OF_A]
    B: tl.constexpr = SPEC[AT + OF_B]
    C: tl.constexpr = A + B
    if A == 0.0:
        return 0.5 * x * x, -x, x, x != x
    else:
        if C == 1.0:
            power, rise_c = a, rise
        else:
            power = tl.exp2(C * log_a)
            rise_c = _difference(power, C * log_b, C * x)
        crossed = A * log_a + B * log_b
        if B == 0.0:
            rise_b, grown_b = tl.zeros_like(x), power * x
        else:
            rise_b = _difference(power, crossed, B * x)
            grown_b = rise_b * (1.0 / B)
        grown_c = power * x if C == 0.0 else rise_c * (1.0 / C)
        far = tl.maximum((grown_c - grown_b) * (1.0 / A), 0.0)
        total = tl.zeros_like(x)
        for n in tl.static_range(SERIES):
            total = total * x + SPEC[AT + OF_SERIES + SERIES - 1 - n]
        value = tl.where(tl.abs(x) <= SPEC[AT + OF_RADIUS], power * (x * x * total), far)
        beyond = tl.maximum(tl.maximum(C * log_a, C * log_b), crossed) > LARGEST_EXPONENT
        return value, -grown_b, (rise_c - rise_b) * (1.0 / A), beyond


@triton.jit
def _alone(mass, log_mass, FORM: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr):
    """What a mass adds that meets none, its slope, and whether it is finite; ``OWN``: the exponent of its side."""
    C: tl.constexpr = OWN + OTHER
    if FORM == TOTAL_VARIATION:
        return 0.5 * mass, 0.5 * mass, True
    elif FORM == JENSEN_SHANNON:
        return 0.5 * LN2 * mass, 0.5 * LN2 * mass, True
    elif FORM == JEFFREYS or (OTHER <= 0.0 or C <= 0.0):
        return mass, mass, False
    else:
        power = mass if C == 1.0 else tl.exp2(C * log_mass)
        return power * (1.0 / (OTHER * C)), power * (1.0 / OTHER), True


@triton.jit
def compare(mixed, at, SPEC: tl.constexpr, AT: tl.constexpr, MASKED: tl.constexpr):
    """D's part of each token, its slopes to log k and to log r, and whether it is infinite.

    Args:
        mixed: What `mixture` returned.
        at: What `beside` did.
        SPEC: See above.
        AT: See above.
        MASKED: See above.
    """
    FORM: tl.constexpr = SPEC[AT + OF_FORM]
    FIRST: tl.constexpr = SPEC[AT + OF_ORDER]
    A: tl.constexpr = SPEC[AT + OF_A]
    B: tl.constexpr = SPEC[AT + OF_B]
    k, r, rise, x, line, near, bend, log_r = at
    log_k, has_k, live = mixed[0], mixed[4], mixed[5]
    infinite = x != x
    if FORM == KL:
        if FIRST:
            value = tl.where(near, bend, tl.maximum(rise - line, 0.0))
            to_k, to_r = -line, rise
        else:
            to_k, to_r = -rise, r * x
            value = tl.where(near, rise * x - bend, tl.maximum(to_r - rise, 0.0))
    elif FORM == JEFFREYS:
        value = rise * x
        to_k, to_r = -line - rise, r * x + rise
    elif FORM == TOTAL_VARIATION:
        side = tl.where(x > 0.0, 0.5, tl.where(x < 0.0, -0.5, 0.0))
        value = 0.5 * tl.abs(rise)
        to_k, to_r = -side * k, side * r
    elif FORM == JENSEN_SHANNON:
        size = tl.abs(x) * LOG2E
        e = tl.exp2(-size)
        middle = _log_of(0.5 * _power_less_one(size, e), 0.5 * e + 0.5, SPEC[AT + OF_PTX]) * LN2
        from_k, from_r = tl.where(x <= 0.0, middle, x + middle), tl.where(x <= 0.0, middle - x, middle)
        to_k, to_r = -0.5 * k * from_k, -0.5 * r * from_r
        close = -(to_k * from_k * _curvature(from_k) + to_r * from_r * _curvature(from_r))
        value = tl.where(near, close, tl.maximum(to_k + to_r, 0.0))
    else:
        a, log_a, log_b = (k, log_k, log_r) if FIRST else (r, log_r, log_k)
        if MASKED:
            log_a, log_b = tl.where(has_k & live, log_a, 0.0), tl.where(has_k & live, log_b, 0.0)
        if FIRST:
            value, to_k, to_r, infinite = _power(a, log_a, log_b, x, rise, SPEC, AT)
        else:
            value, to_r, to_k, infinite = _power(a, log_a, log_b, -x, -rise, SPEC, AT)
    if MASKED:
        both, only_k, only_r = has_k & live, has_k & (live == 0), live & (has_k == 0)
        value_k, slope_k, FINITE_K = _alone(k, log_k, FORM, A if FIRST else B, B if FIRST else A)
        value_r, slope_r, FINITE_R = _alone(r, log_r, FORM, B if FIRST else A, A if FIRST else B)
        value = tl.where(both, value, tl.where(only_k, value_k, tl.where(only_r, value_r, 0.0)))
        to_k = tl.where(both, to_k, tl.where(only_k, slope_k, 0.0))
        to_r = tl.where(both, to_r, tl.where(only_r, slope_r, 0.0))
        infinite &= both
        if not FINITE_K:
            infinite |= only_k
        if not FINITE_R:
            infinite |= only_r
    return value, to_k, to_r, infinite
