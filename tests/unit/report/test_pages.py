"""Pages hold what the records hold, escaped and self-contained, and say plainly what is missing."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from amidkd.citations import citations_of
from amidkd.config import dump_yaml, parse
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate, StandardError
from amidkd.record import RunFolder, write_atomic, write_json, write_json_lines
from amidkd.report import ComparisonRow, write_comparison, write_report
from amidkd.report.run import sentence_of

LOADING = {"src", "href", "xlink:href", "srcset", "action", "data"}
EVIL = "<script>alert('x')</script> & \"so\" on"


class Text(HTMLParser):
    """The words of a page, its tables as rows of cells, and every attribute that loads something."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self._cell = False
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._script = tag == "script"
        self.loads += [
            value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action", "data")
        ]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._script = False
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data):
        if self._script:
            self.scripts.append(data)
            return
        self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data + " "

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, start: str) -> list[str]:
        return next(
            [" ".join(cell.split()) for cell in row] for row in self.rows if " ".join(row[0].split()).startswith(start)
        )


def read(path: Path) -> Text:
    return Text(path.read_text(encoding="utf-8"))


def estimate(value: float, **errors: float) -> dict:
    kinds = {"prompts": 200, "sampling_seeds": 5}
    return Estimate(value, tuple(StandardError(k.replace("_", " "), v, kinds[k]) for k, v in errors.items())).to_json()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "a run")
    objective = {"divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7}, "alpha": -3}
    config = parse({"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o", "objective": objective})
    write_atomic(folder.run_file, dump_yaml(config))
    student = {"exact_match_greedy": estimate(0.451, prompts=0.035), "nll": estimate(0.334, prompts=0.021)}
    student["exact_match_sampled"] = estimate(0.38, prompts=0.03, sampling_seeds=0.006)
    teacher = {"exact_match_greedy": estimate(0.576, prompts=0.036)}
    write_json(
        folder.record_file,
        {
            "verb": "distill",
            "versions": {"torch": "2.99"},
            "commit": "0123abc+changes",
            "models": {"student": {"parameters": 107072}, "teacher": {"parameters": 816768}},
            "data": {"labelled": 1200, "answered by the teacher": 3},
            "estimate": {"seconds": 5, "peak_memory_mb": 90, "used_seconds": 6, "used_peak_memory_mb": 2048},
            "stages": {"warm_start": {"steps": 10, "tokens": 900, "seconds": 2.0}, "distill": {"steps": 20}},
            "results": {
                "evaluation": {
                    "data": {"file": "somewhere/valid.jsonl", "rows": 200, "rows_dropped": 3, "rows_truncated": 4},
                    "settings": {"temperature": 1.0, "sampling_seeds": [10, 20], "max_new_tokens": 32},
                    "student": {"metrics": student},
                    "teacher": {"metrics": teacher},
                    "difference": {"metrics": {"exact_match_greedy": estimate(-0.125, prompts=0.02)}},
                    "missing": ["top-1 agreement: a reason"],
                }
            },
        },
    )
    write_json_lines(folder.metrics_file, [{"step": step, "loss": 1.0 / step} for step in range(1, 9)])
    write_json_lines(
        folder.samples_file,
        [{"prompt": EVIL, "references": ["r 1"], "answers": {"teacher, greedy": "r  1", "student, greedy": EVIL}}],
    )
    return folder


def test_the_table_holds_the_records_numbers_with_each_error(folder: RunFolder) -> None:
    page = read(write_report(folder))
    assert page.row("200 rows")[:4] == ["200 rows", "student", "teacher", "difference"]
    assert page.row("Exact match, greedy")[1:4] == [
        "45.1 % ± 3.5 prompts",
        "57.6 % ± 3.6 prompts",
        "−12.5 % ± 2.0 prompts",
    ]
    assert page.row("Exact match, sampled")[1:4] == ["38.0 % ± 3.0 prompts ± 0.6 sampling seeds", "–", "–"]
    assert page.row("NLL of real text")[1:4] == ["0.334 ± 0.021 prompts", "–", "–"]
    assert "Not measured: top-1 agreement: a reason" in page.text
    assert "Left out: 3 rows whose prompt is over the limit. Cut at data.max_length: 4 texts" in page.text
    assert "Perplexity" not in [" ".join(row[0].split()) for row in page.rows]


def test_the_sentence_tells_the_run_from_its_record(folder: RunFolder) -> None:
    assert (
        "A student of 107 k parameters that learns from a teacher of 817 k by "
        "alpha-beta[a = 0.2, b = 0.7](teacher‖assistant), α = −3, λ = 0.1, trained for 30 steps (10 of them "
        "fine-tuning first) on 900 supervised tokens in 2.0 s; it answers 45.1 % (± 3.5 over prompts) of the held-out "
        "prompts exactly, its teacher 57.6 % (± 3.6 over prompts)."
    ) in read(write_report(folder)).text


def test_the_sentence_names_several_teachers_without_one_size(folder: RunFolder) -> None:
    teachers = {"kind": "ensemble", "teachers": [{"model": "a"}, {"model": "b"}], "weights": "search"}
    run = {"student": "s", "teacher": teachers, "data": {"train": "d"}, "output": "o"}
    found = sentence_of(folder.record(), parse(run))
    assert "that learns from 2 teachers at once, weights searched, by KL(teacher‖assistant)" in found
    assert "817 k" not in found


def test_the_curves_begin_with_the_warm_start(folder: RunFolder) -> None:
    write_json_lines(folder.path / "warm_start" / "metrics.jsonl", [{"step": step, "loss": 2.0} for step in (5, 10)])
    labels = {" ".join(words.split()) for words in read(write_report(folder)).words}
    assert {"warm start", "distill"} <= labels


def test_a_run_that_stopped_says_so(folder: RunFolder) -> None:
    folder.update_record(started="2026-01-01T00:00:00", finished=None)
    assert "in 2.0 s, not finished; it answers" in read(write_report(folder)).text


def test_text_is_escaped_and_nothing_is_loaded_from_outside(folder: RunFolder) -> None:
    path = write_report(folder)
    page, source = read(path), path.read_text(encoding="utf-8")
    assert not any("alert" in script for script in page.scripts)
    assert page.text.count(EVIL) == 2
    assert all(value.startswith(("#", "data:,")) for value in page.loads)
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", source)
    assert not re.search(r"https?://|//\w|@import|url\((?!#)", without_namespaces)
    # α and λ, and the loss.
    assert page.tags.count("figure") == 2


def test_configuration_versions_and_citations_are_there(folder: RunFolder) -> None:
    page = read(write_report(folder))
    assert "between: teacher||assistant" in page.text
    assert page.row("student")[1] == "107,072 parameters"
    assert page.row("rows")[1] == "1,200 labelled, 3 answered by the teacher"
    assert page.row("ratio")[1] == "the teacher has 7.6 times as many parameters as the student"
    assert page.row("estimate")[1] == "5.0 s and 90 MiB by the doctor before the run; used: 6.0 s and 2.0 GiB"
    assert page.row("torch") == ["torch", "2.99"]
    assert page.row("commit") == ["commit", "0123abc+changes"]
    assert "@inproceedings{shin2026amid," in page.text
    assert "@inproceedings{wang2025abkd," in page.text
    assert page.text.count("✓ equals a reference") == 1


def test_missing_parts_are_said_with_the_command(folder: RunFolder) -> None:
    folder.record_file.unlink()
    folder.metrics_file.unlink()
    folder.samples_file.unlink()
    page = read(write_report(folder))
    # A path with a blank in it is quoted, so that the command can be pasted.
    assert re.search(r"This run has not been evaluated\. amidkd eval '[^']*a run' measures", page.text)
    assert "No stage of this run is complete. amidkd distill" in page.text
    assert "This run has logged nothing yet" in page.text
    assert "No samples yet" in page.text
    assert "not trained yet; not evaluated yet." in page.text
    # Where the objective lies is known from the run file.
    assert page.tags.count("figure") == 1


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"neither run\.yaml nor record\.json"):
        write_report(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_same_records_give_the_same_page(folder: RunFolder) -> None:
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


ROWS = [
    ComparisonRow("teacher", {"nll": Estimate(0.2, (StandardError("prompts", 0.01, 500),))}),
    ComparisonRow(
        EVIL,
        {"nll": Estimate(0.3, (StandardError("prompts", 0.02, 500), StandardError("training seeds", 0.04, 2)))},
        detail="α = −1",
    ),
]


def test_a_comparison_shows_every_model_with_its_errors(folder: RunFolder, tmp_path: Path) -> None:
    citations = citations_of(parse({"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o"}))
    path = write_comparison(
        tmp_path / "comparison.html",
        title="Models",
        sentence="What was done.",
        rows=ROWS,
        columns=["nll", "acceptance"],
        notes=["500 prompts, 2 training seeds."],
        curves={"a": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], EVIL: [{"step": 1, "loss": 2.0}]},
        records={EVIL: folder.record(), "b": folder.record()},
        samples=[{"prompt": "p", "references": [], "answers": {"teacher": "x", EVIL: None}}],
        citations=citations,
        command="make demo",
    )
    page = read(path)
    assert page.row("teacher") == ["teacher", "0.200 ± 0.010 prompts", "–"]
    assert page.row(EVIL) == [f"{EVIL} α = −1", "0.300 ± 0.020 prompts ± 0.040 training seeds", "–"]
    assert page.row(f"{EVIL}: warm start")[1:] == ["10", "900", "2.0 s"]
    for words in ("500 prompts, 2 training seeds.", "Made by make demo", "shin2026amid"):
        assert words in page.text
    assert not any("alert" in script for script in page.scripts)
    assert page.tags.count("figure") == 2


def test_few_models_stand_in_columns(tmp_path: Path) -> None:
    path = write_comparison(
        tmp_path / "c.html", title="t", sentence="s", rows=ROWS, columns=["nll", "perplexity", "acceptance"]
    )
    assert read(path).row("NLL of real text")[1] == "0.200 ± 0.010 prompts"


def test_a_comparison_refuses_unknown_metrics_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accuracy"):
        write_comparison(tmp_path / "c.html", title="t", sentence="s", rows=ROWS, columns=["accuracy"])
    with pytest.raises(ValueError, match="rows: 0"):
        write_comparison(tmp_path / "c.html", title="t", sentence="s", rows=[], columns=["nll"])
