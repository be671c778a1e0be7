"""The pages in a real browser: tables and pictures are drawn, nothing is loaded, nothing sticks out on a phone."""

import json
import math
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from PIL import Image

from amidkd.config import dump_yaml, parse
from amidkd.evaluation import METRICS, Estimate, StandardError
from amidkd.record import RunFolder, read_json_lines, versions, write_atomic, write_json, write_json_lines
from amidkd.report import ComparisonRow, write_comparison, write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on PATH; none is there"
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
]
MEASURE = """
<script>
const box = (e) => { const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]; };
const measured = {
  width: innerWidth, page: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
  loaded: performance.getEntriesByType("resource").map((e) => e.name),
  figures: [...document.querySelectorAll("figure svg")].map(box),
  labels: [...document.querySelectorAll("figure svg text")].map((e) => e.getBoundingClientRect().height),
  tables: [...document.querySelectorAll("table")].map((e) => [e.rows.length, ...box(e)]),
  samples: document.querySelectorAll(".sample").length,
  paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
};
const output = parent.document.createElement("output");
output.textContent = JSON.stringify(measured);
parent.document.body.append(output);
</script>
"""


def estimate(value: float) -> Estimate:
    return Estimate(value, (StandardError("prompts", 0.0351, 200), StandardError("sampling seeds", 0.0123, 5)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run's records with every part filled, long words and long answers among them."""
    folder = RunFolder(tmp_path_factory.mktemp("page") / "run")
    objective = {"alpha": {"kind": "linear", "start": 1, "end": -3}}
    config = parse({"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o", "objective": objective})
    write_atomic(folder.run_file, dump_yaml(config))
    metrics = {name: estimate(0.1234 * place).to_json() for place, name in enumerate(METRICS, start=1)}
    stage = {"steps": 200, "tokens": 1.2e6, "seconds": 200.0, "tokens_per_second": 6000.0, "peak_memory_mb": 900.0}
    evaluation = {
        "data": {"file": "valid.jsonl", "rows": 200},
        "settings": {"temperature": 1.0, "sampling_seeds": [10, 20, 30, 40, 50], "max_new_tokens": 32},
        **{side: {"metrics": metrics} for side in ("student", "teacher", "difference")},
    }
    write_json(
        folder.record_file,
        {
            "verb": "distill",
            "versions": versions(),
            "commit": "0" * 40,
            "device": "cpu",
            "models": {"student": {"parameters": 107072}, "teacher": {"parameters": 816768}},
            "stages": {"warm_start": stage, "distill": stage},
            "results": {"evaluation": evaluation},
        },
    )
    keys = ("loss", "kl_teacher_student", "kl_student_teacher", "entropy_teacher", "entropy_student", "responsibility")
    write_json_lines(
        folder.metrics_file,
        [
            {"step": step, "alpha": 1 - step / 50, "lam": 0.1, "top1_agreement": step / 400}
            | {key: math.exp(-step / (40 + 9 * place)) for place, key in enumerate(keys)}
            for step in range(1, 200)
        ],
    )
    answers = {"teacher, greedy": "AA1 R T IY2", "student, greedy": "B" * 400, "student, sampled": "word " * 300}
    write_json_lines(
        folder.samples_file,
        [{"prompt": f"aarti {n}", "references": ["AA1 R T IY2"], "answers": answers} for n in range(20)],
    )
    return folder


@pytest.fixture(scope="module")
def run_page(folder: RunFolder) -> Path:
    return write_report(folder)


@pytest.fixture(scope="module")
def comparison_page(folder: RunFolder) -> Path:
    names = ("teacher", "fine-tuned on the labels", "the teacher's texts", "forward KL", "AMiD")
    columns = [name for name in METRICS if not name.startswith("length")]
    lines = read_json_lines(folder.metrics_file)
    return write_comparison(
        folder.path / "comparison.html",
        title="Several students",
        sentence="What was done.",
        rows=[
            ComparisonRow(name, {column: estimate(0.3 + 0.1 * place) for column in columns}, detail="α = −1, λ = 0.1")
            for place, name in enumerate(names)
        ],
        columns=columns,
        curves=dict.fromkeys(names[3:], lines),
        records={name: folder.record() for name in names[1:]},
        samples=[{"prompt": "p", "references": ["r"], "answers": dict.fromkeys(names, "an answer")}],
        command="amidkd demo",
    )


def chromium(tmp_path: Path, page: Path, *arguments: str, width: int, height: int = 900) -> str:
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},{height}",
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure(tmp_path: Path, page: Path, width: int) -> dict:
    """What the browser makes of a copy of the page, as wide as asked, that reports its own measures."""
    copy = tmp_path / "measured.html"
    inner = page.read_text(encoding="utf-8").replace("</body>", MEASURE + "</body>")
    # A browser's window cannot be as narrow as a phone; a frame can.
    frame = f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{escape(inner, quote=True)}"></iframe>'
    copy.write_text(f"<!doctype html><meta charset=utf-8><body style=margin:0>{frame}", encoding="utf-8")
    found = re.search(r"<output>(.*?)</output>", chromium(tmp_path, copy, "--dump-dom", width=1200), re.DOTALL)
    assert found
    return json.loads(unescape(found[1]))


@pytest.mark.parametrize("name", ["run_page", "comparison_page"])
@pytest.mark.parametrize("width", [1200, 390])
def test_tables_and_pictures_are_there_and_nothing_sticks_out(name, width, request, tmp_path) -> None:
    page = request.getfixturevalue(name)
    found = measure(tmp_path, page, width)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["loaded"] == []
    assert len(found["figures"]) >= 6
    for x, _, wide, high in found["figures"]:
        assert 250 <= wide <= width - 20
        assert 0.25 <= high / wide <= 1.2
        assert x >= 0
        assert x + wide <= width
    assert min(found["labels"]) >= 8, "labels too small to read"
    assert len(found["tables"]) >= 3
    assert all(rows >= 2 and high > 20 for rows, _, _, _, high in found["tables"])
    assert found["samples"] >= 1
    assert found["height"] < (16000 if width > 1000 else 30000)


@pytest.mark.parametrize("name", ["run_page", "comparison_page"])
def test_pictures_are_drawn(name, request, tmp_path) -> None:
    page = request.getfixturevalue(name)
    found = measure(tmp_path, page, 1200)
    shot = tmp_path / "shot.png"
    chromium(tmp_path, page, f"--screenshot={shot}", width=1200, height=found["height"])
    with Image.open(shot) as opened:
        image = opened.convert("RGB")
        assert image.size == (1200, found["height"])
        for x, y, wide, high in found["figures"]:
            colours = image.crop((int(x), int(y), int(x + wide), int(y + high))).getcolors(1 << 20)
            drawn = sorted(colours, reverse=True)
            # Paper, axes and anti-aliased lines: a picture that failed is one colour.
            assert len(drawn) > 30
            assert any(max(colour) - min(colour) > 80 for _, colour in drawn), "no line in colour"
        assert (
            0.5 < sorted(image.convert("RGB").getcolors(1 << 24), reverse=True)[0][0] / (1200 * found["height"]) < 0.99
        )


def test_the_page_follows_the_dark_scheme(run_page, tmp_path) -> None:
    light = measure(tmp_path, run_page, 1200)
    # What a browser does for a reader who prefers dark: the same rules, without their condition.
    dark_page = tmp_path / "dark.html"
    source = run_page.read_text(encoding="utf-8")
    assert source.count("(prefers-color-scheme: dark)") == 1
    dark_page.write_text(source.replace("(prefers-color-scheme: dark)", "all"), encoding="utf-8")
    dark = measure(tmp_path, dark_page, 1200)

    def brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

    assert brightness(light["paper"]) > 0.9 > 0.2 > brightness(light["ink"])
    assert brightness(dark["ink"]) > 0.8 > 0.2 > brightness(dark["paper"])
    shot = tmp_path / "dark.png"
    chromium(tmp_path, dark_page, f"--screenshot={shot}", width=1200, height=dark["height"])
    with Image.open(shot) as image:
        x, y, wide, high = dark["figures"][0]
        grey = image.convert("L").crop((int(x), int(y), int(x + wide), int(y + high))).getextrema()
    assert grey[0] < 40
    assert grey[1] > 150
