"""`Term`: every divergence between every two is one of few cases, with the value that the objective has."""

import math

import pytest
import torch

from amidkd.kernels.terms import Anchor, Form, series, terms_of
from amidkd.maths import Objective, WeightedSum, divergence, log_mixture

CATALOGUE = [
    ("kl", {}),
    ("reverse_kl", {}),
    ("jeffreys", {}),
    ("jensen_shannon", {}),
    ("total_variation", {}),
    ("squared_hellinger", {}),
    ("chi_squared", {}),
    ("amari", {"order": -1.0}),
    ("amari", {"order": 0.4}),
    ("amari", {"order": 1.0}),
    ("amari", {"order": -2.0}),
    ("alpha_beta", {"a": 0.2, "b": 0.7}),
    ("alpha_beta", {"a": 0.7, "b": 0.0}),
    ("alpha_beta", {"a": 0.0, "b": 0.7}),
    ("alpha_beta", {"a": 0.5, "b": -0.5}),
    ("alpha_beta", {"a": -0.5, "b": 0.5}),
    ("alpha_beta", {"a": 0.0, "b": 0.0}),
    ("alpha_beta", {"a": -0.3, "b": 0.9}),
]
BETWEEN = [
    "teacher||student",
    "student||teacher",
    "teacher||assistant",
    "assistant||teacher",
    "student||assistant",
    "assistant||student",
]
N, V = 5, 11


def log_probs(seed):
    return (2 * torch.randn(N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(-1)


def textbook(term, log_a, log_b):
    """D(a‖b) [n] as in the books; the power divergence by its own function."""
    a, b = log_a.exp(), log_b.exp()
    middle = (0.5 * (a + b)).log()
    terms = {
        Form.KL: a * (log_a - log_b),
        Form.JEFFREYS: (a - b) * (log_a - log_b),
        Form.TOTAL_VARIATION: 0.5 * (a - b).abs(),
        Form.JENSEN_SHANNON: 0.5 * a * (log_a - middle) + 0.5 * b * (log_b - middle),
    }
    value = (
        divergence("alpha_beta", a=term.a, b=term.b)(log_a, log_b)
        if term.form == Form.POWER
        else terms[term.form].sum(-1)
    )
    return term.factor * value


def evaluated(term, *, teacher, student):
    """What a term says of log p and log q [n, V]."""
    assistant = log_mixture(teacher, student, alpha=1 - 2 * term.s, lam=term.lam)
    anchor = teacher if term.anchor == Anchor.TEACHER else student
    first, second = (anchor, assistant) if term.anchor_first else (assistant, anchor)
    return term.weight * textbook(term, first, second)


@pytest.mark.parametrize("name", CATALOGUE, ids=str)
@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("alpha", [-3.0, 1.0, torch.tensor([-5.0, 0.0, 1.0, 3.0, 0.99999])])
@pytest.mark.parametrize("lam", [0.3, torch.tensor([0.0, 1.0, 0.5, 0.25, 0.125])])
def test_a_term_has_the_value_of_its_objective(name, between, alpha, lam):
    objective = Objective(divergence=divergence(name[0], **name[1]), between=between, alpha=alpha, lam=lam)
    sides = {"teacher": log_probs(0), "student": log_probs(1)}
    (term,) = terms_of(objective)
    assert abs(term.a) >= abs(term.b)
    torch.testing.assert_close(evaluated(term, **sides), objective(**sides), rtol=1e-11, atol=1e-13)


def test_known_divergences_are_few_forms():
    forms = {}
    for name, parameters in CATALOGUE:
        (term,) = terms_of(Objective(divergence=divergence(name, **parameters), between="teacher||student"))
        forms.setdefault(term.form, []).append((name, *parameters.values()))
    assert forms.pop(Form.KL) == [("kl",), ("reverse_kl",), ("amari", -1.0), ("amari", 1.0)]
    assert {form: names[0][0] for form, names in forms.items() if len(names) == 1} == {
        Form.JEFFREYS: "jeffreys",
        Form.JENSEN_SHANNON: "jensen_shannon",
        Form.TOTAL_VARIATION: "total_variation",
    }


def test_without_an_assistant_it_is_the_student():
    (term,) = terms_of(Objective(between="student||teacher", alpha=torch.full((N,), 3.0), lam=0.7))
    assert (term.lam, term.anchor, term.anchor_first) == (0.0, Anchor.TEACHER, False)


def test_a_sum_keeps_its_weights_and_drops_what_weighs_nothing():
    terms = terms_of(
        0.25 * Objective(alpha=-1.0)
        + 0.0 * Objective(alpha=0.5)
        + 2.0 * Objective(between="assistant||student", detach_assistant=True)
    )
    assert [(term.weight, term.detached) for term in terms] == [(0.25, False), (2.0, True)]
    assert terms_of(WeightedSum(((0.0, Objective()),))) == ()


def test_a_divergence_of_the_users_own_has_no_term():
    own = Objective(divergence=lambda log_a, log_b: (log_a.exp() * (log_a - log_b)).sum(-1))
    assert terms_of(own) is None
    assert terms_of(0.5 * Objective() + 0.5 * own) is None


def test_what_is_negligible_is_zero():
    assert terms_of(Objective(alpha=1.0 - 1e-31))[0].s == 0.0
    (term,) = terms_of(Objective(alpha=torch.tensor([1.0, -1.0]), lam=torch.tensor([0.1, 0.2])))
    assert term.s.tolist() == [0.0, 1.0]
    assert term.s.dtype == term.lam.dtype == torch.float64
    assert terms_of(Objective(divergence=divergence("alpha_beta", a=0.5, b=1e-40)))[0].b == 0.0


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.5, 0.5), (2.0, -1.0), (0.7, 0.2), (0.5, -0.5)])
def test_the_series_is_that_of_the_power_divergence(a, b):
    """x² a^C Σ h_n xⁿ = a^C (E_C(x) − E_B(x))/A, with 1 for a; E_c(x) = (e^{cx} − 1)/c."""

    def growth(x, exponent):
        return math.expm1(exponent * x) / exponent if exponent else x

    for x in (-0.4, 0.3, 0.5):
        wanted = (growth(x, a + b) - growth(x, b)) / a
        found = x * x * sum(h * x**n for n, h in enumerate(series(a, b, 12)))
        assert found == pytest.approx(wanted, rel=1e-11)
