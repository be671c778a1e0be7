"""The pictures of a run's ``metrics.jsonl``, or of several runs' over each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amidkd.record import RunFolder, read_json_lines
from amidkd.report.figures import Figure, Series, line_figure, points_averaged

__all__ = ["PANELS", "Panel", "curves_of_run", "curves_of_runs", "lines_of_run", "note_on"]

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Panel:
    """One picture: which keys of a line it shows.

    Args:
        name: Prefix of the ids in its SVG.
        title: Its heading.
        ylabel: Name and unit of the vertical axis.
        keys: Key of a line → name in the legend.
        factor: From the unit of the record to that of the axis.
        only_if_it_changes: Leave the picture out where nothing in it moves.
        together: Leave the picture out where no step logged this many of the keys at once.
    """

    name: str
    title: str
    ylabel: str
    keys: Mapping[str, str]
    factor: float = 1.0
    only_if_it_changes: bool = False
    together: int = 1


PANELS = (
    Panel("loss", "Loss", "nats a token", {"loss": "loss"}),
    Panel(
        "parts",
        "Parts of the loss, before their weights",
        "nats a token",
        {"divergence": "divergence", "cross_entropy": "cross-entropy", "corpus_loss": "corpus"},
        together=2,
    ),
    Panel(
        "kl",
        "Divergence from the teacher",
        "nats a token",
        {"kl_teacher_student": "KL(teacher‖student)", "kl_student_teacher": "KL(student‖teacher)"},
    ),
    Panel(
        "entropy",
        "Entropy",
        "nats a token",
        {"entropy_teacher": "teacher", "entropy_student": "student", "entropy_assistant": "assistant"},
    ),
    Panel("agreement", "Top-1 agreement with the teacher", "per cent of tokens", {"top1_agreement": "agreement"}, 100),
    Panel("omega", "Mean responsibility ω", "ω, mean over the teacher", {"responsibility": "ω"}),
    Panel("schedule", "Schedules", "value", {"alpha": "α", "lam": "λ"}, only_if_it_changes=True),
    Panel(
        "text",
        "Text that the student wrote",
        "per cent",
        {"student_text": "of the supervised tokens", "finished": "of its answers end"},
        100,
    ),
    Panel("length", "Length of the student's answers", "tokens, mean", {"answer_length": "length"}),
    Panel("validation", "Validation loss", "nats a token", {"validation_loss": "validation loss"}),
    Panel("threshold", "Threshold φ of the student's text", "probability", {"threshold": "φ"}),
    Panel("rate", "Learning rate", "learning rate", {"learning_rate": "learning rate"}),
    Panel("speed", "Speed", "supervised tokens a second", {"tokens_per_second": "tokens/s"}),
    Panel("memory", "Peak memory", "MiB", {"peak_memory_mb": "peak memory"}, only_if_it_changes=True),
)
"""What a line of ``metrics.jsonl`` can hold, in the order of the page."""

_ACROSS_RUNS = (
    "loss",
    "kl_teacher_student",
    "kl_student_teacher",
    "entropy_student",
    "top1_agreement",
    "responsibility",
)


def lines_of_run(folder: RunFolder) -> list[dict[str, Any]]:
    """Log lines of every stage of a run, in the order of the stages, each with its stage's name as ``stage``.

    Args:
        folder: The run.
    """
    verb = str(folder.record().get("verb", "distill"))
    stages = (("warm_start", RunFolder(folder.path / "warm_start")), (verb, folder))
    return [{**line, "stage": name} for name, part in stages for line in read_json_lines(part.metrics_file)]


def curves_of_run(lines: Lines) -> list[Figure]:
    """One picture for each group of metrics that the lines hold; where a stage begins, a mark with its name.

    Args:
        lines: Lines of ``metrics.jsonl``, as :func:`lines_of_run` gives them.
    """
    steps, marks = _positions(lines)
    pictures = []
    for panel in PANELS:
        if not any(sum(key in line for key in panel.keys) >= panel.together for line in lines):
            continue
        found = (_series(lines, steps, key, label, panel.factor) for key, label in panel.keys.items())
        series = [line for line in found if line is not None]
        if panel.only_if_it_changes and all(len({y for y in line.y if not math.isnan(y)}) < 2 for line in series):
            continue
        if series:
            pictures.append(_picture(f"curve-{panel.name}", panel.title, series, panel, marks))
    return pictures


def curves_of_runs(runs: Mapping[str, Lines]) -> list[Figure]:
    """One picture for each metric, with a line for each run that logged it.

    Args:
        runs: Lines of ``metrics.jsonl`` by the name of the run.
    """
    steps = {name: _positions(lines)[0] for name, lines in runs.items()}
    pictures = []
    for panel in PANELS:
        for key, label in panel.keys.items():
            if key not in _ACROSS_RUNS:
                continue
            series = [_series(lines, steps[name], key, name, panel.factor) for name, lines in runs.items()]
            found = [line for line in series if line is not None]
            if found:
                title = panel.title if len(panel.keys) == 1 else f"{panel.title}: {label}"
                pictures.append(_picture(f"runs-{key}", title, found, panel, {}))
    return pictures


def _picture(name: str, title: str, series: Sequence[Series], panel: Panel, marks: Mapping[str, float]) -> Figure:
    return line_figure(name, title, series, xlabel="optimizer step", ylabel=panel.ylabel, marks=marks)


def _positions(lines: Lines) -> tuple[list[float], dict[str, float]]:
    """Where each line stands on the axis, one stage after the other; and where stages begin, if there are several."""
    positions: list[float] = []
    starts: dict[str, float] = {}
    offset = 0.0
    for place, line in enumerate(lines):
        if place and line["step"] <= lines[place - 1]["step"]:
            offset = positions[-1]
        starts.setdefault(str(line.get("stage", "")).replace("_", " "), offset)
        positions.append(offset + line["step"])
    return positions, starts if len(starts) > 1 else {}


def note_on(lines: Sequence[Lines]) -> str:
    """What the pictures average over, where they do.

    Args:
        lines: Lines of ``metrics.jsonl`` of each run.
    """
    size = points_averaged(max((len(run) for run in lines), default=0))
    return f"Each point is the mean of up to {size} neighbouring log lines." if size > 1 else ""


def _series(lines: Lines, steps: Sequence[float], key: str, label: str, factor: float) -> Series | None:
    """One metric as a line, with a gap between stages: they may minimise different things."""
    x: list[float] = []
    y: list[float] = []
    stage = None
    for position, line in zip(steps, lines, strict=True):
        if not isinstance(line.get(key), int | float):
            continue
        if x and line.get("stage") != stage:
            x.append(position)
            y.append(math.nan)
        stage = line.get("stage")
        x.append(position)
        y.append(factor * float(line[key]))
    return Series(label, x, y) if x else None
