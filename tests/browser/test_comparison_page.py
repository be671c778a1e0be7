"""The page of a comparison in Chromium: verdicts, sorting, filtering, a phone."""

from pathlib import Path

import pytest

from amidkd.report import compare_runs
from compare_world import make


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    names = [("a", 0.0, 1.0), ("b", 0.4, -0.5)]
    paths = [
        make(folder / f"{name}-seed-{seed}", shift, 7 * seed + n, alpha=alpha, training_seed=seed)
        for n, (name, shift, alpha) in enumerate(names)
        for seed in (1, 2)
    ]
    return compare_runs(paths)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    return compare_runs([make(folder / f"run{n}", 0.1 * (5 * n % 9), n, alpha=n) for n in range(9)])


def test_a_verdict_stands_in_view_with_its_picture(browser, two) -> None:
    browser.open(two)
    assert "worse" in browser.texts("td.verdict")
    assert browser.all("td.verdict .error"), "what a verdict rests on"
    browser.point_at(browser.all("figure svg [data-tip]")[0])
    assert browser.one(".tip").text.startswith("Exact match, sampled:")
    assert browser.one(".tip").text.endswith("Inside the noise.")


@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_sticks_out(browser, two, many, width) -> None:
    for page in (two, many):
        browser.open(page, width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width


def test_many_models_are_sorted_and_filtered(browser, many) -> None:
    browser.open(many)
    table = "table[data-sort] tbody "
    column = f"{table} td:nth-child(2)"

    def values() -> list[float]:
        return [float(text.removesuffix(" %")) for text in browser.texts(column)]

    before = values()
    assert before != sorted(before)
    # The second heading: the first metric.
    heading = browser.all("table[data-sort] thead th button")[1]
    browser.point_at(heading)
    heading.click()
    assert values() == sorted(before)
    browser.one("input[type=search]").send_keys("run7")
    assert browser.texts(f"{table} th") == ["run7"]


def test_other_pairs_open_on_demand(browser, many) -> None:
    browser.open(many)
    closed = [details for details in browser.all("#main > details") if details.get_attribute("open") is None]
    assert len(closed) >= 5
    assert not closed[0].find_element("css selector", "table").is_displayed()
    closed[0].find_element("css selector", "summary").click()
    assert closed[0].find_element("css selector", "table").is_displayed()
