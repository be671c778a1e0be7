"""The demo's table on the screen and its page, both made from its record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amidkd.citations import citations_of
from amidkd.config import RunConfig
from amidkd.demo.runs import METHODS
from amidkd.evaluation import METRICS, Estimate, ModelResult
from amidkd.evaluation.display import show
from amidkd.record import RunFolder, read_json_lines
from amidkd.report import ComparisonRow, write_comparison
from amidkd.report.words import count, duration

__all__ = ["BASELINE", "COLUMNS", "print_table", "write_page"]

BASELINE = "labels"
"""The method that the others are compared with."""

COLUMNS = (
    "exact_match_greedy",
    "exact_match_sampled",
    "rouge_l_greedy",
    "nll",
    "kl_teacher_student",
    "kl_student_teacher",
)
"""Metrics of the table on the screen."""

_MORE_COLUMNS = ("rouge_l_sampled", "teacher_nll_of_samples", "acceptance")
_MARKS = {"prompts": "p", "training seeds": "t"}
_SAMPLES = 16


def print_table(output: RunFolder, record: Mapping[str, Any]) -> None:
    """Print the table, what it says of the students, and where everything is.

    Args:
        output: The demo's folder.
        record: Its record.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    metrics = record["results"]["metrics"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("", no_wrap=True)
    for _, title, _ in _models(record):
        table.add_column(title, justify="right", min_width=8)
    for name in COLUMNS:
        cells = (_cell(metrics[key].get(name), name) for key, _, _ in _models(record))
        table.add_row(METRICS[name].label, *cells)
    console = Console()
    console.print(table)
    marks = "± one standard error: p over prompts, t over training seeds."
    for line in (marks, *_notes(record), f"Report: {output.report_file}", f"Runs:   {output.path}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_page(
    output: RunFolder,
    record: Mapping[str, Any],
    *,
    configs: Mapping[tuple[str, int], RunConfig],
    teacher: ModelResult,
    students: Mapping[str, Sequence[ModelResult]],
) -> Path:
    """Write ``report.html``.

    Args:
        output: The demo's folder.
        record: Its record.
        configs: Settings of each run, by method and training seed.
        teacher: The teacher's result.
        students: Those of the students by method, one for each training seed.
    """
    first = record["scale"]["training_seeds"][0]
    runs = {m.name: RunFolder(Path(configs[m.key, first].output.folder)) for m in METHODS}
    metrics = record["results"]["metrics"]
    cited = {c.key: c for config in configs.values() for c in citations_of(config)}
    return write_comparison(
        output.report_file,
        title="Small instructions: one teacher, four students",
        sentence=_sentence(record),
        rows=[
            ComparisonRow(title, {name: Estimate.from_json(e) for name, e in metrics[key].items()}, detail=detail)
            for key, title, detail in _models(record)
        ],
        columns=(*COLUMNS, *_MORE_COLUMNS),
        notes=_notes(record),
        curves={f"{name}, seed {first}": _lines(run) for name, run in runs.items()},
        records={f"{name}, seed {first}": run.record() for name, run in runs.items()},
        samples=_samples(teacher, {method.name: students[method.key][0] for method in METHODS}),
        citations=list(cited.values()),
        command="amidkd demo",
    )


def _models(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key, name and description of each model, the teacher first."""
    size = count(record["models"]["teacher"]["parameters"])
    teacher = ("teacher", "teacher", f"{size} parameters, from the package")
    return [teacher, *((method.key, method.name, method.detail) for method in METHODS)]


def _cell(entry: Mapping[str, Any] | None, name: str) -> str:
    """The number, and below it its standard errors."""
    if entry is None:
        return "–"
    shown = show(Estimate.from_json(entry), METRICS[name])
    errors = [f"±{error.text} {_MARKS[error.over]}" for error in shown.errors if error.over in _MARKS]
    return "\n".join([shown.text, *errors])


def _sentence(record: Mapping[str, Any]) -> str:
    scale, models = record["scale"], record["models"]
    sizes = {side: models[side]["parameters"] for side in ("teacher", "student")}
    return (
        f"A teacher of {count(sizes['teacher'])} parameters is distilled into students of {count(sizes['student'])} "
        f"({sizes['teacher'] / sizes['student']:.1f} times fewer) on {scale['rows']:,} short instructions, of which "
        f"{100 * scale['label_fraction']:g} % have a label. Training all students took "
        f"{duration(record['training_seconds'])}."
    )


def _notes(record: Mapping[str, Any]) -> list[str]:
    scale, rows = record["scale"], record["results"]["rows"]
    seeds = len(scale["training_seeds"])
    return [
        f"Errors are over the {rows} held-out prompts, and over {seeds} training seeds (weights, order of rows). The "
        "teacher was trained once. Exact match: one of the right answers. NLL and KL in nats a token.",
        f"Every student: the same start for a seed, {scale['steps']} steps of {scale['batch_size']} rows, peak "
        f"learning rate {scale['learning_rate']:g}, cosine schedule. Forward KL and AMiD spend the first "
        f"{scale['warm_start']} of the steps on fine-tuning by cross-entropy on the same texts. Nothing is tuned for "
        "any of them.",
        *_gains(record),
    ]


def _gains(record: Mapping[str, Any]) -> list[str]:
    """How far each method is from plain fine-tuning, in greedy exact match, paired by prompt."""
    name = "exact_match_greedy"
    lines = []
    for method in METHODS:
        entry = record["results"][f"difference from {BASELINE}"].get(method.key)
        if entry is not None:
            shown = show(Estimate.from_json(entry[name]), METRICS[name], sign=True)
            errors = ", ".join(f"±{error.text} over {error.over}" for error in shown.errors)
            points = shown.text.removesuffix(" %")
            lines.append(f"{method.name} against {BASELINE} alone: exact match, greedy, {points} points ({errors}).")
    return lines


def _lines(folder: RunFolder) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl`` of both stages, each with its stage's name."""
    stages = {"warm_start": RunFolder(folder.path / "warm_start"), str(folder.record()["verb"]): folder}
    return [{**line, "stage": name} for name, part in stages.items() for line in read_json_lines(part.metrics_file)]


def _samples(teacher: ModelResult, students: Mapping[str, ModelResult]) -> list[dict[str, Any]]:
    """The first held-out prompts with every model's greedy answer."""
    held_out = teacher.held_out
    models = {"teacher": teacher, **students}
    return [
        {
            "prompt": held_out.rows[index].prompt,
            "references": list(held_out.references[index]),
            "answers": {name: result.greedy.texts[place] for name, result in models.items() if result.greedy},
        }
        for place, index in enumerate(held_out.asked[:_SAMPLES])
    ]
