"""docs/assistant.html in a real browser: its mathematics is that of amidkd.maths; it is used by hand and by key."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.maths import DIVERGENCES, Objective, divergence, log_mixture
from amidkd.maths.gradient import value_and_gradient
from amidkd.maths.mixture import responsibility

PAGE = Path(__file__).resolve().parents[2] / "docs" / "assistant.html"
PAIRS = [
    f"{a}||{b}" for a in ("teacher", "assistant", "student") for b in ("teacher", "assistant", "student") if a != b
]
PARAMETERS: dict[str, list[dict[str, float]]] = {
    "amari": [{"order": o} for o in (-3.0, -1.0, 0.0, 0.5, 1.0, 3.0)],
    "alpha_beta": [{"a": 0.2, "b": 0.7}, {"a": 1.0, "b": 0.0}, {"a": -0.5, "b": 1.2}, {"a": 0.7, "b": -0.7}],
}
ALPHAS = [-5.0, -3.0, -1.0, -0.5, 0.0, 0.5, 0.99999, 1.0, 1.00001, 2.0, 3.0]


@pytest.fixture
def page(browser: Any) -> Any:
    browser.open(PAGE)
    return browser.driver


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Peaked and flat ones, some with zeros, in one or both."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 12, generator=generator, dtype=torch.float64) * (1.0, 3.0, 8.0)[seed % 3]
    if seed % 4 == 1:
        logits[0, :3] = -math.inf
    if seed % 4 == 2:
        logits[1, 4:6] = -math.inf
    if seed % 4 == 3:
        logits[0, :3], logits[1, 2:5] = -math.inf, -math.inf
    if seed == 7:
        # Disjoint: no token has both.
        logits[0], logits[1] = -math.inf, -math.inf
        logits[0, :6], logits[1, 6:] = 0.0, 0.0
    p, q = logits.softmax(-1)
    return p, q


def numbers(value: Any) -> torch.Tensor:
    """What the page gave: JSON has no infinities."""
    return torch.tensor([float(each) for each in value], dtype=torch.float64)


@pytest.mark.parametrize("seed", range(12))
def test_the_assistant_and_omega_are_those_of_maths(page, seed) -> None:
    p, q = distributions(seed)
    cases = [(alpha, lam) for alpha in [*ALPHAS, -50.0, 50.0] for lam in (0.0, 0.1, 0.5, 0.9, 1.0)]
    script = """const [p, q, cases] = arguments;
        return cases.map((case_) => [amidkd.mixture(p, q, ...case_), amidkd.responsibility(p, q, ...case_)]);"""
    for (alpha, lam), (r, omega) in zip(cases, page.execute_script(script, p.tolist(), q.tolist(), cases), strict=True):
        expected = log_mixture(p.log(), q.log(), alpha=alpha, lam=lam).exp()
        torch.testing.assert_close(numbers(r), expected, rtol=0, atol=1e-9, msg=f"α {alpha}, λ {lam}")
        expected = responsibility(p.log(), q.log(), alpha=alpha, lam=lam)
        torch.testing.assert_close(numbers(omega), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_values_and_gradients_are_those_of_maths(page, name) -> None:
    cases = []
    for seed in range(12):
        p, q = distributions(seed)
        for place, between in enumerate(PAIRS):
            for parameters in PARAMETERS.get(name, [{}]):
                alpha, lam = ALPHAS[(seed + place) % len(ALPHAS)], (0.1, 0.5, 0.9)[(seed + place) % 3]
                detach = seed % 5 == 4 and "assistant" in between and "student" in between
                settings = {"between": between, "alpha": alpha, "lam": lam, "detach": detach}
                cases.append((p, q, {"divergence": name, "parameters": parameters, **settings}))
    script = """return arguments[0].map(([p, q, settings]) => {
        const found = amidkd.objective(settings, p.map(Math.log), q.map(Math.log));
        return [String(found.value), found.gradient.map(String)]; });"""
    given = [(p.tolist(), q.tolist(), settings) for p, q, settings in cases]
    infinite = 0
    for (p, q, settings), (value, gradient) in zip(cases, page.execute_script(script, given), strict=True):
        objective = Objective(
            divergence=divergence(name, **settings["parameters"]),
            between=settings["between"],
            alpha=settings["alpha"],
            lam=settings["lam"],
            detach_assistant=settings["detach"],
        )
        expected, slope = value_and_gradient(objective, teacher=p.log(), student=q.log())
        scale = max(1.0, float(slope.abs().max()), float(expected) if math.isfinite(expected) else 1.0)
        assert float(value) == pytest.approx(float(expected), abs=1e-9 * scale), settings
        torch.testing.assert_close(numbers(gradient), slope, rtol=0, atol=1e-9 * scale, msg=str(settings))
        infinite += math.isinf(expected)
    assert infinite < len(cases) * 2 / 3


def test_a_sum_of_objectives_is_gkd(page) -> None:
    p, q = distributions(4)
    term = {"divergence": "kl"}
    terms = [
        {**term, "between": "teacher||assistant", "weight": 0.3},
        {**term, "between": "student||assistant", "weight": 0.7},
    ]
    script = """const [p, q, settings] = arguments;
        const found = amidkd.objective(settings, p.map(Math.log), q.map(Math.log));
        return [found.value, found.gradient];"""
    value, gradient = page.execute_script(script, p.tolist(), q.tolist(), {"alpha": -1, "lam": 0.3, "terms": terms})
    gkd = 0.3 * Objective(alpha=-1, lam=0.3) + 0.7 * Objective(between="student||assistant", alpha=-1, lam=0.3)
    expected, slope = value_and_gradient(gkd, teacher=p.log(), student=q.log())
    assert value == pytest.approx(float(expected), abs=1e-12)
    torch.testing.assert_close(numbers(gradient), slope, rtol=0, atol=1e-12)


def shown(page: Any, selector: str) -> str:
    return page.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def bar_of(page: Any, who: str, token: int) -> Any:
    from selenium.webdriver.common.by import By

    return page.find_element(By.CSS_SELECTOR, f'[aria-label="{who}, token {token}"]')


def value_of(page: Any, who: str, token: int) -> float:
    return float(bar_of(page, who, token).get_attribute("aria-valuenow"))


def test_a_bar_is_dragged_and_the_rest_makes_room(page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    before, said = value_of(page, "teacher", 3), shown(page, "#values")
    bar = bar_of(page, "teacher", 3)
    ActionChains(page).move_to_element(bar).click_and_hold().move_by_offset(0, -60).release().perform()
    after = value_of(page, "teacher", 3)
    assert after > before + 0.02
    assert sum(value_of(page, "teacher", token) for token in range(1, 13)) == pytest.approx(1.0, abs=1e-3)
    assert shown(page, "#values") != said
    assert shown(page, "#readout").startswith("Token 3: p ")


def test_bars_move_by_key(page) -> None:
    from selenium.webdriver.common.keys import Keys

    bar = bar_of(page, "student", 1)
    before = value_of(page, "student", 1)
    bar.send_keys(Keys.PAGE_UP)
    assert value_of(page, "student", 1) == pytest.approx(before + 0.1, abs=1e-3)
    bar.send_keys(Keys.HOME)
    assert value_of(page, "student", 1) == 0.0
    bar.send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.get_attribute("aria-label") == "student, token 2"


def press(page: Any, group: str, text: str) -> None:
    script = (
        "[...document.querySelectorAll(`#${arguments[0]} button`)].find((b) => b.textContent === arguments[1]).click()"
    )
    page.execute_script(script, group, text)


def test_a_known_method_sets_the_controls_and_the_python(page) -> None:
    press(page, "methods", "DistiLLM, skew KL")
    state = page.execute_script(
        "return ['alpha', 'lam', 'divergence', 'between'].map((id) => document.getElementById(id).value)"
    )
    assert state == ["-1", "0.1", "kl", "teacher||assistant"]
    scope: dict[str, Any] = {}
    exec(shown(page, "#python"), scope)
    rows = shown(page, "#values")
    assert f"KL(teacher‖assistant){float(scope['value']):.4f}" in rows


def test_one_bump_follows_the_gradient_into_a_mode_or_over_both(page) -> None:
    page.execute_script(
        "const f = document.getElementById('family'); f.value = 'bump'; f.dispatchEvent(new Event('change'))"
    )
    widths = {}
    for method in ("Forward KL", "Reverse KL"):
        press(page, "presets", "Student collapsed" if method == "Reverse KL" else "Two modes")
        press(page, "methods", method)
        page.execute_script("for (let n = 0; n < 150; n += 1) document.getElementById('step').click()")
        values = [value_of(page, "student", token) for token in range(1, 13)]
        widths[method] = sum(value > 0.03 for value in values)
    assert widths["Forward KL"] >= 8
    assert widths["Reverse KL"] <= 5


def test_zeros_are_said_and_the_theme_switches(page) -> None:
    press(page, "presets", "Teacher with zeros")
    press(page, "methods", "Reverse KL")
    assert "infinite" in shown(page, "#said")
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = page.execute_script(paper)
    page.execute_script("document.querySelector('button.theme').click()")
    assert page.execute_script(paper) != before
    page.execute_script("document.querySelector('button.theme').click()")


def test_nothing_sticks_out_on_a_phone(page, browser) -> None:
    browser.size(390, 800)
    assert page.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
    assert page.execute_script("return document.querySelector('.drag .hit').getBoundingClientRect().width") >= 12
