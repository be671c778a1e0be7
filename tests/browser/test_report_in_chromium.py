"""The pages in a real browser: tables and pictures are drawn, nothing is loaded, nothing sticks out on a phone."""

import io
import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pytest
from PIL import Image

from amidkd.config import parse
from amidkd.evaluation import METRICS, Estimate, StandardError, evaluate_run
from amidkd.record import RunFolder, read_json_lines, write_json_lines
from amidkd.report import ComparisonRow, write_comparison, write_report
from amidkd.training import distill
from tiny_world import WORDS, make_model, make_tokenizer

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
  missing: [...document.querySelectorAll(".missing")].map((e) => e.textContent),
};
const output = parent.document.createElement("output");
output.textContent = JSON.stringify(measured);
parent.document.body.append(output);
</script>
"""


def estimate(value: float) -> Estimate:
    return Estimate(value, (StandardError("prompts", 0.0351, 200), StandardError("training seeds", 0.0123, 5)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A real run, small: answers, warm start, distillation with a schedule of α, evaluation."""
    path = tmp_path_factory.mktemp("page")
    tokenizer = make_tokenizer()
    make_model(width=16, layers=2, seed=2, padded_vocab=24).save_pretrained(path / "teacher")
    tokenizer.save_pretrained(path / "teacher")
    rows = [{"prompt": f"{a} {b}", "completion": f"{b} {a}"} for a in WORDS for b in WORDS]
    write_json_lines(path / "train.jsonl", rows[:100])
    write_json_lines(path / "valid.jsonl", rows[100:])
    shape = {"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    config = parse(
        {
            "student": {
                "kind": "from_scratch",
                "config": {**shape, "num_attention_heads": 2},
                "warm_start": {"max_steps": 6},
            },
            "teacher": str(path / "teacher"),
            "data": {
                "train": str(path / "train.jsonl"),
                "validation": str(path / "valid.jsonl"),
                "prompt_template": "<s> {prompt} <sep>",
                "label_fraction": 0.3,
                "generation": {"max_new_tokens": 6},
            },
            "objective": {"alpha": {"kind": "linear", "start": 1, "end": -3}, "cross_entropy_weight": 0.1},
            "training": {
                "max_steps": 12,
                "learning_rate": 0.01,
                "logging_steps": 1,
                "disable_tqdm": True,
                "use_cpu": True,
            },
            "evaluation": {"sampling_seeds": [1, 2], "max_new_tokens": 6},
            "output": str(path / "run"),
        }
    )
    folder = distill(config)
    evaluate_run(config, folder)
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
        # A word that cannot be broken, and an answer of many lines.
        samples=[
            {"prompt": "B" * 400, "references": ["r"], "answers": dict.fromkeys(names, "B" * 200 + "\nword" * 90)}
        ],
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
    assert found["missing"] == []
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


@pytest.mark.parametrize("name", ["run_page", "comparison_page"])
def test_pictures_follow_the_dark_scheme(name, request, browser) -> None:
    browser.open(request.getfixturevalue(name), scheme="dark")
    for figure in browser.all("figure svg")[:3]:
        with Image.open(io.BytesIO(figure.screenshot_as_png)) as image:
            grey = image.convert("L")
            assert sorted(grey.getcolors(), reverse=True)[0][1] < 40, "the paper is dark"
            assert grey.getextrema()[1] > 150, "the ink is light"
