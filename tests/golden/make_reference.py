"""Write reference.json: values and gradients from the textbook formulas in 60 digits, by another route.

    python tests/golden/make_reference.py

Distributions are lists of mpmath numbers, formulas are those of the design as they stand there, and the gradient with
respect to the student's logits is a central difference. Nothing of amidkd is imported.
"""

import json
import random
from pathlib import Path

import mpmath
from mpmath import mpf

__all__ = ["FILE", "cases", "reference"]

FILE = Path(__file__).with_name("reference.json")
VOCABULARY = 7
DIVERGENCES = [
    ("kl", {}),
    ("reverse_kl", {}),
    ("jeffreys", {}),
    ("jensen_shannon", {}),
    ("total_variation", {}),
    ("squared_hellinger", {}),
    ("chi_squared", {}),
    ("amari", {"order": -1.0}),
    ("amari", {"order": -0.99999}),
    ("amari", {"order": 0.4}),
    ("amari", {"order": 1.0}),
    ("amari", {"order": 2.5}),
    ("alpha_beta", {"a": 0.2, "b": 0.7}),
    ("alpha_beta", {"a": 0.5, "b": 0.0}),
    ("alpha_beta", {"a": 1e-5, "b": 0.6}),
    ("alpha_beta", {"a": 0.0, "b": 0.6}),
    ("alpha_beta", {"a": 0.5, "b": -0.5}),
    ("alpha_beta", {"a": 0.0, "b": 0.0}),
    ("alpha_beta", {"a": -0.4, "b": 0.9}),
]
BETWEEN = ["teacher||student", "student||teacher"]
WITH_ASSISTANT = ["teacher||assistant", "assistant||teacher", "student||assistant", "assistant||student"]
ALPHAS = [-5.0, -3.0, -1.0, -0.5, 0.0, 0.5, 0.99999, 1.0, 1.00001, 1.5, 3.0, 5.0]
LAMS = [0.01, 0.1, 0.5, 0.9]
SPREADS = [0.01, 1.0, 3.0]


def softmax(logits):
    weights = [mpf(0) if z is None else mpmath.exp(z) for z in logits]
    return [w / mpmath.fsum(weights) for w in weights]


def mixture(sources, weights, alpha):
    s = (1 - mpf(alpha)) / 2
    raw = []
    for probabilities in zip(*sources, strict=True):
        if s > 0:
            total = mpmath.fsum(w * p**s for w, p in zip(weights, probabilities, strict=True))
            raw.append(total ** (1 / s))
        elif any(p == 0 for p in probabilities):
            raw.append(mpf(0))
        elif s == 0:
            raw.append(mpmath.exp(mpmath.fsum(w * mpmath.log(p) for w, p in zip(weights, probabilities, strict=True))))
        else:
            raw.append(mpmath.fsum(w * p**s for w, p in zip(weights, probabilities, strict=True)) ** (1 / s))
    return [m / mpmath.fsum(raw) for m in raw]


def kl(a, b):
    return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True) if x != 0)


def alpha_beta(a, b, first, second):
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x != 0 or y != 0]
    log, total = mpmath.log, first + second
    if first == 0 and second == 0:
        return mpmath.fsum((log(x) - log(y)) ** 2 for x, y in pairs) / 2
    if total == 0:
        return mpmath.fsum(log(y**first / x**first) + (x / y) ** first - 1 for x, y in pairs) / first**2
    if second == 0:
        return mpmath.fsum(x**first * log((x / y) ** first) - x**first + y**first for x, y in pairs) / first**2
    if first == 0:
        return mpmath.fsum(y**second * log((y / x) ** second) - y**second + x**second for x, y in pairs) / second**2
    parts = (x**first * y**second - first / total * x**total - second / total * y**total for x, y in pairs)
    return -mpmath.fsum(parts) / (first * second)


def divergence(name, parameters, a, b):
    pairs = list(zip(a, b, strict=True))
    if name == "kl":
        return kl(a, b)
    if name == "reverse_kl":
        return kl(b, a)
    if name == "jeffreys":
        return kl(a, b) + kl(b, a)
    if name == "jensen_shannon":
        middle = [(x + y) / 2 for x, y in pairs]
        return (kl(a, middle) + kl(b, middle)) / 2
    if name == "total_variation":
        return mpmath.fsum(abs(x - y) for x, y in pairs) / 2
    if name == "squared_hellinger":
        return 1 - mpmath.fsum(mpmath.sqrt(x * y) for x, y in pairs)
    if name == "chi_squared":
        return mpmath.fsum((x - y) ** 2 / y for x, y in pairs if x != 0 or y != 0)
    if name == "amari":
        order = mpf(parameters["order"])
        if order in (-1, 1):
            return kl(a, b) if order == -1 else kl(b, a)
        total = mpmath.fsum(x ** ((1 - order) / 2) * y ** ((1 + order) / 2) for x, y in pairs if x != 0 or y != 0)
        return 4 / (1 - order**2) * (1 - total)
    return alpha_beta(a, b, mpf(parameters["a"]), mpf(parameters["b"]))


def value(case, logits, fixed=None):
    """D for these student logits; ``fixed``: those of the detached assistant."""
    q = softmax(logits)
    teachers = [softmax(z) for z in case["teacher_logits"]]
    weights = [mpf(w) for w in case["teacher_weights"]]
    lam = mpf(case["lam"])
    frozen = q if fixed is None else softmax(fixed)
    seats = {"student": lambda: q, "teacher": lambda: mixture(teachers, weights, case["alpha"])}
    seats["assistant"] = lambda: mixture([*teachers, frozen], [*(lam * w for w in weights), 1 - lam], case["alpha"])
    first, second = case["between"].split("||")
    return divergence(case["divergence"], case["parameters"], seats[first](), seats[second]())


def reference(case):
    """The case with its value and gradient, rounded to float."""
    with mpmath.workdps(60):
        logits = [None if z is None else mpf(z) for z in case["student_logits"]]
        fixed = logits if case["detach_assistant"] else None
        gradient, step = [], mpf(10) ** -20
        for v, z in enumerate(logits):
            if z is None:
                gradient.append(0.0)
                continue
            ends = [value(case, [*logits[:v], z + side * step, *logits[v + 1 :]], fixed) for side in (-1, 1)]
            gradient.append(float((ends[1] - ends[0]) / (2 * step)))
        return {**case, "value": float(value(case, logits, fixed)), "gradient": gradient}


def _single(x):
    """The nearest number with 20 binary digits, which float32 holds exactly."""
    return round(x * 2**16) / 2**16


def cases(seed=0):
    """Each divergence with each pair; the rest drawn at random."""
    draw = random.Random(seed)
    for name, parameters in DIVERGENCES:
        for between in (*BETWEEN, *WITH_ASSISTANT):
            count = draw.choice([1, 1, 2, 3])
            spread = draw.choice(SPREADS)
            shared = [draw.gauss(0, 1) for _ in range(VOCABULARY)] if spread < 1 else [0.0] * VOCABULARY
            made = [[_single(z + draw.gauss(0, spread)) for z in shared] for _ in range(count + 1)]
            masked = draw.sample(range(VOCABULARY), draw.choice([0, 0, 1, 2]))
            if parameters.get("a", 1.0) <= 0 and draw.random() < 0.5:
                masked = []
            made = [[None if v in masked else z for v, z in enumerate(logits)] for logits in made]
            raw = [draw.randrange(1, 9) for _ in range(count)]
            yield {
                "divergence": name,
                "parameters": parameters,
                "between": between,
                "alpha": draw.choice(ALPHAS),
                "lam": draw.choice(LAMS),
                "detach_assistant": between in WITH_ASSISTANT and "student" in between and draw.random() < 0.3,
                "teacher_weights": [w / sum(raw) for w in raw],
                "teacher_logits": made[:-1],
                "student_logits": made[-1],
            }


def main():
    lines = [json.dumps(reference(case)) for case in cases()]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{len(lines)} cases")


if __name__ == "__main__":
    main()
