"""Figures: the same each time, with ids of their own, in the page's colours, showing what they were given."""

import re
import xml.etree.ElementTree as ET

import pytest

from amidkd.evaluation import Estimate, StandardError
from amidkd.report.curves import curves_of_run, curves_of_runs, note_on
from amidkd.report.figures import Series, interval_figure, line_figure

SVG = "{http://www.w3.org/2000/svg}"


def lines(steps: int) -> list[dict]:
    return [
        {
            "step": step,
            "loss": 3.0 / step,
            "kl_teacher_student": 1.0 / step,
            "kl_student_teacher": 2.0 / step,
            "alpha": -3.0,
        }
        for step in range(1, steps + 1)
    ]


def ids(svg: str) -> list[str]:
    return re.findall(r'\sid="([^"]+)"', svg)


def test_a_figure_is_the_same_each_time() -> None:
    first, second = (line_figure("a", "Loss", [Series("x", [1, 2], [3, 4])], xlabel="s", ylabel="n") for _ in range(2))
    assert first == second


def test_ids_are_unique_over_a_page_and_every_reference_has_its_target() -> None:
    pictures = [*curves_of_run(lines(20)), *curves_of_runs({"a": lines(20), "b": lines(20)})]
    assert len(pictures) >= 5
    every = [name for picture in pictures for name in ids(picture.svg)]
    assert len(every) == len(set(every))
    for picture in pictures:
        targets = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', picture.svg)
        assert targets
        assert {a or b for a, b in targets} <= set(ids(picture.svg))


def test_svg_is_well_formed_has_a_name_and_no_colour_or_font_of_its_own() -> None:
    picture = line_figure("a", 'A "title" & more', [Series("x", [1, 2], [3, 4])], xlabel="steps", ylabel="nats")
    root = ET.fromstring(picture.svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("aria-label") == 'A "title" & more'
    assert root.get("viewBox")
    assert root.get("width") is None
    assert "steps" in [text.text for text in root.iter(f"{SVG}text")]
    assert "var(--series-1)" in picture.svg
    assert "var(--ink)" in picture.svg
    assert not re.search(r"#a100\d\d", picture.svg)
    assert "font-family" not in picture.svg
    assert "DejaVu" not in picture.svg
    assert "metadata" not in picture.svg


def _points(svg: str) -> int:
    """Corners of the longest path drawn in a colour of the series."""
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="[^"]*var\(--series', svg)
    return max(path.count("L") + path.count("M") for path in paths)


def test_long_runs_are_averaged_and_the_page_says_so() -> None:
    short, long = lines(250), lines(3000)
    assert note_on([short]) == ""
    assert "10 neighbouring" in note_on([long])
    flat = Series("x", [float(x) for x in range(3000)], [float(x % 7) for x in range(3000)])
    assert _points(line_figure("a", "t", [flat], xlabel="", ylabel="").svg) <= 300


def test_pictures_are_those_of_the_metrics_that_were_logged() -> None:
    titles = [picture.title for picture in curves_of_run(lines(9))]
    assert titles == ["Loss", "Divergence from the teacher"]
    moving = [{**line, "alpha": -line["step"], "lam": 0.1} for line in lines(9)]
    assert "Schedules" in [picture.title for picture in curves_of_run(moving)]
    assert curves_of_run([]) == []


def test_the_parts_of_a_loss_are_shown_where_it_has_several() -> None:
    alone = [{**line, "divergence": 1.0} for line in lines(9)]
    both = [{**line, "cross_entropy": 2.0} for line in alone]
    apart = [*alone, *({"step": line["step"], "cross_entropy": 2.0} for line in alone)]
    for lacking in (alone, apart):
        assert "Parts of the loss, before their weights" not in [picture.title for picture in curves_of_run(lacking)]
    assert "Parts of the loss, before their weights" in [picture.title for picture in curves_of_run(both)]


def _drawn(svg: str) -> list[str]:
    """Paths drawn in a colour of the series inside the axes."""
    return re.findall(r'<path d="([^"]+)" clip-path[^>]*style="[^"]*var\(--series', svg)


def test_a_line_breaks_between_stages() -> None:
    one = _drawn(curves_of_run(lines(50))[0].svg)
    two = _drawn(curves_of_run([{**line, "stage": stage} for stage in "ab" for line in lines(50)])[0].svg)
    assert (len(one), len(two)) == (1, 2)


def test_stages_follow_each_other_on_one_axis() -> None:
    stages = [{**line, "stage": stage} for stage in ("warm_start", "distill") for line in lines(50)]
    shown = [text.text for text in ET.fromstring(curves_of_run(stages)[0].svg).iter(f"{SVG}text")]
    assert {"warm start", "distill", "100"} <= set(shown)
    single = [text.text for text in ET.fromstring(curves_of_run(lines(50))[0].svg).iter(f"{SVG}text")]
    assert not {"warm start", "distill", "100"} & set(single)


def test_intervals_show_each_kind_of_error_in_its_legend() -> None:
    both = Estimate(0.5, (StandardError("prompts", 0.1, 9), StandardError("training seeds", 0.2, 2)))
    svg = interval_figure("a", "NLL", [("teacher", Estimate(0.3)), ("student", both)], xlabel="nats").svg
    shown = [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]
    for label in ("teacher", "student", "± standard error over prompts", "± standard error over training seeds"):
        assert label in shown


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_is_not_finite_leaves_the_rest_of_the_picture(value: float) -> None:
    rows = [("a", Estimate(value, (StandardError("prompts", value, 3),))), ("b", Estimate(1.0))]
    shown = [text.text for text in ET.fromstring(interval_figure("a", "t", rows, xlabel="").svg).iter(f"{SVG}text")]
    assert {"a", "b"} <= set(shown)
