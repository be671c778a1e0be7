"""The page of a sweep as a reader uses it: the map by pointer and by key, the table, both themes, a phone."""

import math
from pathlib import Path

import pytest

from amidkd.report import write_sweep_report
from sweep_world import grid_sweep


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep_report(grid_sweep(tmp_path_factory.mktemp("sweeps") / "alpha"))


def cells(browser):
    return browser.all('svg [id^="map-0-0-cell-"]')


def test_a_cell_tells_its_trial_to_pointer_and_keys(browser, page) -> None:
    browser.open(page)
    found = {each.get_attribute("data-tip"): each for each in cells(browser)}
    assert len(found) == 40
    missing = next(tip for tip in found if tip.startswith("α 1, λ 0.5"))
    browser.point_at(found[missing])
    assert browser.one("#tip").text == "α 1, λ 0.5\nnot tried"
    corner = next(tip for tip in found if tip.startswith("α −5, λ 0.05"))
    found[corner].click()
    assert browser.one("#tip").text.startswith("α −5, λ 0.05\ntrial 0: NLL of real text")
    after = browser.press("\ue014")
    assert after.get_attribute("data-tip") != corner
    assert browser.one("#tip").text == after.get_attribute("data-tip")


def test_a_point_of_a_curve_tells_its_trial(browser, page) -> None:
    browser.open(page)
    point = browser.one('svg [id="curve-0-point-4"]')
    browser.point_at(point)
    # λ = 0.5 is drawn last, over the others.
    assert browser.one("#tip").text.startswith("α −5, λ 0.5\ntrial 4: NLL of real text")


def test_trials_sort_by_value_and_filter(browser, page) -> None:
    browser.open(page)
    heading = next(each for each in browser.all("#trial-table th button") if each.text.startswith("NLL"))
    heading.click()
    column = 4
    rows = browser.all("#trial-table tbody tr")
    values = [row.find_elements("css selector", "th, td")[column].get_attribute("data-value") for row in rows]
    numbers = [float(value) for value in values if value != "–"]
    assert numbers == sorted(numbers)
    assert len(numbers) == 35
    assert values[35:] == ["–"] * 4, "trials without a number come last"
    field = browser.one("#trials ~ label input")
    field.send_keys("failed")
    shown = [row for row in rows if row.is_displayed()]
    assert len(shown) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_on_the_map_are_readable(browser, page, scheme) -> None:
    browser.open(page, scheme=scheme)

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def rgb(expression: str) -> list[float]:
        found = browser.run(
            "const e = document.createElement('i'); e.style.color = arguments[0]; document.body.append(e);"
            "const c = getComputedStyle(e).color; e.remove(); return c.match(/[\\d.]+/g).map(Number);",
            expression,
        )
        return found[:3]

    paper, ink, series = (rgb(f"var(--{name})") for name in ("paper", "ink", "series-1"))
    strongest = browser.run(
        "return Math.max(...[...document.querySelectorAll('svg [style*=\"opacity: 0\"]')]"
        ".map((e) => Number(e.style.opacity)).filter((o) => o > 0.02));"
    )
    assert 0.5 < strongest <= 0.551
    behind = [strongest * s + (1 - strongest) * p for s, p in zip(series, paper, strict=True)]
    light, dark = sorted((luminance(ink), luminance(behind)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5, "WCAG AA"


def test_nothing_sticks_out_on_a_phone(browser, page) -> None:
    browser.open(page, width=390)
    assert browser.run("return document.documentElement.scrollWidth") == 390
    heights = browser.run(
        "return [...document.querySelectorAll('figure svg text')].map((e) => e.getBoundingClientRect().height)"
        ".filter((h) => h > 0)"
    )
    assert min(heights) >= 7.5
    assert math.isfinite(sum(heights))


def test_the_page_is_whole_without_scripts(browser, page) -> None:
    driver = browser.driver
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(page)
        assert len(browser.all("#trial-table tbody tr")) == 39
        assert "Use α =" in browser.one(".lead").text
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
