"""The page of a run as a reader uses it: tips, keys, filters, order, theme, a phone, ten thousand tokens, no script."""

from pathlib import Path
from typing import Any

import pytest

from amidkd.config import dump_yaml, parse
from amidkd.evaluation import Estimate, Interval, StandardError
from amidkd.record import RunFolder, write_atomic, write_json, write_json_lines
from amidkd.report import write_report

WORDS = ["the", " cat", " sat", "\n", " on", " a", " mat", "."]


def token(place: int, kl: float | None) -> dict[str, Any]:
    """A token of tokens.jsonl: the teacher is sure of it, the student thinks of others first."""
    names = [WORDS[(place + shift) % len(WORDS)] for shift in range(5)]
    return {
        "text": names[0],
        "kl": kl,
        "p": 0.9,
        "q": 0.05,
        "teacher": [[name, 0.9 / 9**rank] for rank, name in enumerate(names)],
        "assistant": [[name, 0.5 / 2**rank] for rank, name in enumerate(names)],
        "student": [[name, 0.6 / 3**rank] for rank, name in enumerate(reversed(names))],
    }


def estimate(value: float) -> dict[str, Any]:
    error = StandardError("prompts", 0.01, 40)
    return Estimate(value, (error,), Interval(value - 0.02, value + 0.02, 0.95)).to_json()


def make_run(path: Path, *, rows: int, tokens: int) -> Path:
    """A run's folder with what an evaluation leaves in it, and its page."""
    folder = RunFolder(path)
    config = parse({"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o"})
    write_atomic(folder.run_file, dump_yaml(config))
    metrics = {"exact_match_greedy": 0.4, "nll": 0.5, "kl_teacher_student": 0.2}
    sides = {side: {"metrics": {name: estimate(value) for name, value in metrics.items()}} for side in ("student",)}
    sides["teacher"] = {"metrics": {name: estimate(0.8) for name in ("exact_match_greedy", "nll")}}
    write_json(
        folder.record_file,
        {"results": {"evaluation": {"data": {"file": "v.jsonl", "rows": 40}, "settings": {}, **sides, "missing": []}}},
    )
    steps = [0.001, 0.02, 0.05, 0.2, 0.5, 2.0, None, 5.0]
    write_json_lines(
        folder.tokens_file,
        [
            {
                "row": f"v.jsonl, line {row}",
                "prompt": f"prompt {row} </script><b>",
                "kl": 1.0 / (row + 1),
                "alpha": -0.5,
                "lam": 0.1,
                "tokens": [token(place, steps[place % len(steps)]) for place in range(tokens)],
            }
            for row in range(rows)
        ],
    )
    answers = ["yes", "no"]
    write_json_lines(
        folder.samples_file,
        [
            {
                "prompt": f"question {number}",
                "references": ["yes"],
                "answers": {"teacher, greedy": "yes", "student, greedy": answers[number % 2]},
                "kl_teacher_student": [0.3, 0.1, 0.02][number % 3] + number / 1000,
            }
            for number in range(20)
        ],
    )
    write_json_lines(folder.metrics_file, [{"step": step, "loss": 1.0 / step} for step in range(1, 9)])
    return write_report(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "a run", rows=3, tokens=24)


def tip_of(browser) -> str:
    found = browser.one("#tip")
    return found.text if found.is_displayed() else ""


def test_a_token_tells_what_each_model_finds_likeliest(browser, page) -> None:
    browser.open(page)
    tokens = browser.all(".stream .token")
    assert [each.get_attribute("class") for each in tokens[:8]] == [
        f"token k{step}" for step in (0, 1, 2, 3, 4, 5, 6, 6)
    ]
    browser.point_at(tokens[1])
    told = tip_of(browser)
    assert told.startswith("␣cat token 2 of 24, KL 0.0200 nats\nprobability: teacher 90.0 %, student 5.0 %")
    assert [table.text.split("\n")[0] for table in browser.all("#tip table")] == ["teacher", "assistant", "student"]
    assert browser.texts("#tip table:nth-child(3) tr") == [
        "␣a 60.0 %",
        "␣on 20.0 %",
        "⏎ 6.7 %",
        "␣sat 2.2 %",
        "␣cat 0.7 %",
    ]
    assert browser.texts("#tip .here th") == ["␣cat"] * 3
    browser.point_at(browser.one("h1"))
    assert tip_of(browser) == ""


def test_arrows_move_between_tokens_and_escape_closes_the_tip(browser, page) -> None:
    browser.open(page)
    assert [each.get_attribute("tabindex") for each in browser.all(".stream .token")[:3]] == ["0", "-1", "-1"]
    browser.run("arguments[0].focus()", browser.one(".stream .token"))
    assert "token 1 of 24" in tip_of(browser)
    right, left, down, up, end = "\ue014", "\ue012", "\ue015", "\ue013", "\ue010"
    browser.press(right, right)
    assert "token 3 of 24" in tip_of(browser)
    browser.press(left)
    assert "token 2 of 24, KL 0.0200 nats" in tip_of(browser)
    # Every fourth token ends a line.
    below = int(browser.press(down).get_attribute("data-place"))
    assert below > 3
    assert int(browser.press(up).get_attribute("data-place")) == 1
    assert "token 24 of 24" in (browser.press(end) and tip_of(browser))
    focused = browser.driver.switch_to.active_element
    assert focused.get_attribute("aria-describedby") == "tip"
    assert focused.get_attribute("tabindex") == "0"
    browser.press("\ue00c")
    assert tip_of(browser) == ""


def test_a_tap_opens_a_tip(browser, page) -> None:
    browser.open(page, width=390)
    spot = browser.all(".stream .token")[2]
    browser.run("arguments[0].scrollIntoView({block: 'center'})", spot)
    x, y = browser.run("const r = arguments[0].getBoundingClientRect(); return [r.x + 2, r.y + 2]", spot)
    touch = browser.driver.execute_cdp_cmd
    touch("Emulation.setTouchEmulationEnabled", {"enabled": True})
    touch("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    touch("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    touch("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert "token 3 of 24" in tip_of(browser)
    box = browser.run("const r = document.getElementById('tip').getBoundingClientRect(); return [r.left, r.right]")
    assert box[0] >= 0
    assert box[1] <= 390


def test_what_is_not_finite_is_told_so(browser, page) -> None:
    browser.open(page)
    browser.point_at(browser.all(".stream .token")[6])
    assert "KL not finite" in tip_of(browser)


def test_curves_are_read_off_by_pointer_and_by_arrows(browser, page) -> None:
    browser.open(page)
    curve = browser.one("figure svg[data-readout]")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", curve)
    # The tick of step 4 is where the pointer should find step 4.
    tick = next(each for each in browser.all("figure svg[data-readout] text") if each.text == "4")
    x, y = browser.run(
        "const t = arguments[0].getBoundingClientRect(), b = arguments[1].getBoundingClientRect();"
        "return [t.x + t.width / 2, b.y + b.height / 2];",
        tick,
        curve,
    )
    mouse = {"type": "mouseMoved", "x": x, "y": y}
    browser.driver.execute_cdp_cmd("Input.dispatchMouseEvent", mouse)
    assert tip_of(browser) == "optimizer step 4\nloss: 0.25"
    browser.point_at(browser.one("h1"))
    assert tip_of(browser) == ""
    browser.run("arguments[0].focus()", curve)
    browser.press("\ue011", "\ue014")
    assert tip_of(browser) == "optimizer step 2\nloss: 0.5"
    browser.press("\ue010")
    assert tip_of(browser) == "optimizer step 8\nloss: 0.125"


def test_samples_are_filtered_and_ordered(browser, page) -> None:
    browser.open(page)
    prompts = "#sample-list .sample dd:nth-of-type(1)"
    assert len(browser.texts(prompts)) == 12
    order = browser.one("select[data-sort-for]")
    for value, first in (("kl descending", "question 18"), ("kl ascending", "question 2"), ("", "question 0")):
        browser.run("arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))", order, value)
        assert browser.texts(prompts)[0] == first
    browser.run("arguments[0].value = 'right ascending'; arguments[0].dispatchEvent(new Event('change'))", order)
    assert browser.texts(prompts)[:3] == ["question 1", "question 3", "question 5"]
    field = next(
        each for each in browser.all("label.filter input") if "samples" in each.find_element("xpath", "..").text
    )
    field.send_keys("QUESTION no")
    assert sorted(browser.texts(prompts)) == sorted(f"question {number}" for number in range(1, 20, 2))
    assert "10 of 20" in browser.texts(".bar label.filter output")
    field.clear()
    field.send_keys(" ")
    button = browser.one("button.button")
    assert button.text == "Show all 20"
    button.click()
    assert len(browser.texts(prompts)) == 20


def test_tables_sort_by_number_and_by_word(browser, page) -> None:
    browser.open(page)
    table = "#tokens ~ .scroll table[data-sort]"
    name, times, mean, _ = browser.all(f"{table} button.sort")
    for button, column, way in (
        (mean, 3, float),
        (mean, 3, lambda text: -float(text)),
        (times, 2, int),
        (name, 1, str),
    ):
        button.click()
        cells = browser.texts(f"{table} tbody tr > :nth-child({column})")
        assert len(set(cells)) > 2 or column == 2
        assert cells == sorted(cells, key=way) or column == 1
    assert name.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    assert mean.find_element("xpath", "..").get_attribute("aria-sort") is None


def test_the_theme_follows_the_system_until_it_is_switched(browser, page) -> None:
    def paper() -> int:
        return sum(browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"))

    kept = "return localStorage.getItem('amidkd-theme')"
    browser.open(page, scheme="light")
    assert paper() > 700
    browser.scheme("dark")
    assert paper() < 100
    # The page hears of the system's change with the next frame.
    browser.wait("document.querySelector('button.theme').innerText.trim() === 'Light'")
    browser.one("button.theme").click()
    assert paper() > 700
    assert browser.run(kept) == "light"
    with browser.stored("amidkd-theme", "light"):
        browser.driver.refresh()
    assert paper() > 700, "the choice is kept"
    browser.one("button.theme").click()
    assert paper() < 100
    assert browser.run(kept) is None, "what the system says anyway is not kept"
    browser.scheme("light")
    assert paper() > 700


CONTRAST = """
const numbers = (colour) => {
  const found = colour.match(/[\\d.]+(?:e-?\\d+)?/g).map(Number);
  const scale = colour.startsWith("color(") ? 255 : 1;
  return [...found.slice(0, 3).map((part) => part * scale), found[3] ?? 1];
};
const light = (c) => {
  const [r, g, b] = c.map((part) => part / 255).map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const colour = numbers(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour;
  }
  return [255, 255, 255, 1];
};
const found = {};
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own || !element.checkVisibility() || ["SCRIPT", "STYLE", "OPTION"].includes(element.tagName)) continue;
  const style = getComputedStyle(element);
  const ink = numbers(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
  const [a, b] = [light(ink.slice(0, 3)), light(behind(element).slice(0, 3))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = `${element.tagName} ${element.getAttribute("class")}`;
  if (ratio < (found[name]?.[0] ?? 99)) found[name] = [ratio, element.textContent.slice(0, 40)];
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser, page, scheme) -> None:
    """WCAG 2.2, success criterion 1.4.3, level AA."""
    browser.open(page, scheme=scheme)
    browser.point_at(browser.all(".stream .token")[3])
    found = browser.run(CONTRAST)
    assert {"SPAN token k6", "H1 null", "P note"} <= set(found)
    assert {name: ratio for name, ratio in found.items() if ratio[0] < 4.5} == {}


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser, page) -> None:
    browser.open(page)
    browser.run("document.body.focus()")
    first = browser.press("\ue004")
    assert first.text == "To the content"
    browser.press("\ue007")
    assert browser.run("return document.activeElement.id") == "main"
    reached = set()
    for _ in range(60):
        element = browser.press("\ue004")
        style = browser.run("return getComputedStyle(document.activeElement).outlineStyle")
        if element.tag_name == "body":
            break
        name = element.tag_name + "." + (element.get_attribute("class") or "")
        reached.add(name)
        assert style != "none", name
    assert {"input.", "summary.", "button.sort", "select.", "button.button"} <= reached
    assert any(name.startswith("span.token") for name in reached)


def test_nothing_sticks_out_on_a_phone(browser, page) -> None:
    browser.open(page, width=390)
    assert browser.run("return document.documentElement.scrollWidth") <= 390
    assert len(browser.all(".card")) >= 3
    assert browser.one("table.results").is_displayed()


def test_everything_is_there_without_script(browser, page) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(page)
        assert len(browser.texts("#sample-list .sample")) == 20
        assert not browser.one("button.theme").is_displayed()
        assert not [bar for bar in browser.all(".bar") if bar.is_displayed()]
        assert browser.texts("details[open] .plain")[0].startswith("the cat sat")
        assert browser.texts("details[open] .places tbody th")[0] == "␣mat"
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_ten_thousand_tokens_are_drawn_when_their_row_opens(browser, tmp_path) -> None:
    browser.open(make_run(tmp_path / "large", rows=20, tokens=512))
    rows = browser.all("details.token-row")
    assert len(rows) == 20
    assert len(browser.all(".stream .token")) == 512, "only the first row is open"
    for row in rows[1:]:
        browser.run("arguments[0].open = true", row)
    browser.driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    tokens = browser.all(".stream .token")
    assert len(tokens) == 20 * 512
    browser.point_at(tokens[-3])
    assert "token 510 of 512" in tip_of(browser)
