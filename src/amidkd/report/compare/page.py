"""The page of a comparison, and what the terminal shows of it."""

import os
from pathlib import Path
from typing import Any

import yaml

from amidkd.citations import Citation, citations_of
from amidkd.config import load
from amidkd.errors import SettingError
from amidkd.evaluation.compare import Gap, metric_of
from amidkd.evaluation.display import show, table_console
from amidkd.evaluation.metrics import Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.record import read_json_lines
from amidkd.report.compare.figures import gap_figures
from amidkd.report.compare.shared import Compared, Side
from amidkd.report.compare.words import (
    detail_of,
    p_text,
    seeds_text,
    sentence_of_pair,
    sentence_of_sides,
    statistics_note,
    title_of,
)
from amidkd.report.comparison import ComparisonRow, write_comparison
from amidkd.report.curves import lines_of_run
from amidkd.report.results import unit_of

__all__ = ["pair_rows", "print_compared", "write_compared_page"]

_MOST_PICTURES, _MOST_CURVES, _MOST_SAMPLES = 3, 6, 50
_PICTURES = ("exact_match_greedy", "rouge_l_sampled", "nll", "kl_teacher_student", "teacher_nll_of_samples")


def write_compared_page(found: Compared, path: Path) -> Path:
    """Write the page of a comparison.

    Args:
        found: The comparison.
        path: Where the page goes.
    """
    others = found.sides[1:]
    teacher = [ComparisonRow("teacher", found.teacher)] if found.teacher else []
    rows = [ComparisonRow(side.name, side.estimates, detail_of(side)) for side in found.sides]
    runs = [run for side in found.sides for run in side.runs]
    return write_comparison(
        path,
        title=title_of(found),
        sentence=sentence_of_sides(found),
        rows=[*teacher, *rows],
        columns=found.metrics,
        notes=[*statistics_note(found)],
        pictures=[name for name in _PICTURES if name in found.metrics],
        curves={run.name: lines_of_run(run.folder) for run in runs} if len(runs) <= _MOST_CURVES else None,
        records={run.name: run.record for run in runs},
        samples=_samples(found),
        citations=_citations(found),
        command="amidkd report --compare " + " ".join(os.path.relpath(run.folder.path) for run in runs),
        warnings=[*found.notes, *(f"Left out: {line}" for line in found.omitted)],
        pairs=[_pair(found, side, number) for number, side in enumerate(others)],
        spreads=_spreads(found),
    )


def _pair(found: Compared, side: Side, number: int) -> dict[str, Any]:
    drawn = number < _MOST_PICTURES
    return {
        "heads": [found.baseline.name, side.name],
        "sentence": sentence_of_pair(found.baseline, side),
        "rows": pair_rows(found.baseline, side),
        "seeds": any(gap.seeds is not None for gap in side.gaps),
        "figures": gap_figures(f"gaps{number}", side.gaps) if drawn else [],
        "open": drawn,
    }


def pair_rows(baseline: Side, side: Side) -> list[dict[str, Any]]:
    """A row for each metric that two sides have, as text.

    Args:
        baseline: What the side is compared with.
        side: The side.
    """
    rows = []
    for gap in side.gaps:
        metric = metric_of(gap.metric)
        if metric is None:
            continue
        task = gap.metric.rpartition(".")[0]
        rows.append(
            {
                "group": task.replace("_", " ") or metric.group,
                "label": metric.label,
                "unit": unit_of(metric),
                "values": [show(each.estimates[gap.metric], metric).text for each in (baseline, side)],
                "gap": show(gap.gap, metric, sign=True),
                "p": p_text(gap.adjusted),
                "seeds": seeds_text(gap),
                "verdict": gap.verdict,
                "look": _look(gap),
                "differing": f"{gap.differing:,} of {gap.prompts:,} prompts differ",
            }
        )
    # As the table of one run has them: group by group, tasks of the suite last.
    order = list(dict.fromkeys(row["group"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["group"]))


def _look(gap: Gap) -> str:
    """How the verdict is marked: in colour only for what nothing speaks against."""
    if gap.verdict.finding in ("holds", "prompts"):
        return {"better": "right", "worse": "wrong"}.get(gap.verdict.head, "")
    return "unsure"


def _spreads(found: Compared) -> dict[str, Any] | None:
    """Table of how far runs of one configuration are apart, and why."""
    sides = [side for side in found.sides if side.spreads]
    if not sides:
        return None
    rows = []
    for name in found.metrics:
        metric = metric_of(name)
        cells: list[str] = []
        for side in sides:
            spread = side.spreads.get(name)
            parts = (spread.training, spread.sampling) if spread is not None else (None, None)
            cells.extend("–" if part is None or metric is None else _plain_text(part, metric) for part in parts)
        if metric is not None and any(cell != "–" for cell in cells):
            rows.append([metric.label, *cells])
    heads = [f"{side.name}: {what} seeds" for side in sides for what in ("training", "sampling")]
    return {"heads": ["metric", *heads], "rows": rows}


def _plain_text(value: float, metric: Metric) -> str:
    return show(Estimate(value), metric).text


def _samples(found: Compared) -> list[dict[str, Any]]:
    """The first prompts that every side kept, with the greedy answer of each side's first run."""
    if len(found.sides) > _MOST_CURVES:
        return []
    kept = [(side, read_json_lines(side.runs[0].folder.samples_file)) for side in found.sides]
    by_prompt = [{line["prompt"]: line for line in lines} for _, lines in kept]
    samples = []
    for prompt, line in by_prompt[0].items():
        if not all(prompt in lines for lines in by_prompt):
            continue
        answers = {"teacher": line["answers"].get("teacher, greedy")} if found.teacher else {}
        for (side, _), lines in zip(kept, by_prompt, strict=True):
            answers[side.name] = lines[prompt]["answers"].get("student, greedy")
        samples.append({"prompt": prompt, "references": line.get("references", []), "answers": answers})
    return samples[:_MOST_SAMPLES]


def _citations(found: Compared) -> list[Citation]:
    cited: dict[str, Citation] = {}
    for side in found.sides:
        try:
            config = load(side.runs[0].folder.path)
        except (SettingError, yaml.YAMLError):
            # A run file of another version: the page is made from the records all the same.
            continue
        cited.update({citation.key: citation for citation in citations_of(config)})
    return list(cited.values())


def print_compared(found: Compared) -> None:
    """Print a comparison on standard output.

    Args:
        found: The comparison.
    """
    console = table_console()
    in_full = len(found.sides) <= _MOST_PICTURES
    if in_full:
        for side in found.sides[1:]:
            console.print(_table(found, side, narrow=console.width < _NARROW))
    lines = [sentence_of_pair(found.baseline, side) for side in found.sides[1:]]
    if in_full:
        lines.append(
            f"[low,high]: {100 * found.level:g} % confidence interval over prompts, paired. p: sign-flip test over "
            "prompts, after Holm’s correction over all tests."
        )
    for line in [*lines, *found.notes, *(f"Left out: {each}" for each in found.omitted)]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


_NARROW = 100
"""Columns of a terminal below which a table leaves p out."""


def _table(found: Compared, side: Side, *, narrow: bool) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for head in (found.baseline.name, side.name, "difference", *(() if narrow else ("p",))):
        # A number is never cut; a long name may be.
        table.add_column(Text(head), justify="right", overflow="fold")
    table.add_column("")
    for row in pair_rows(found.baseline, side):
        gap, verdict = row["gap"], row["verdict"]
        interval = f" [{gap.interval.replace(' to ', ',')}]" if gap.interval else ""
        words = verdict.head + {"seeds differ": ", prompts only", "few seeds": ", few seeds"}.get(verdict.finding, "")
        cells = [row["label"], *row["values"], f"{gap.text}{interval}", *(() if narrow else (row["p"],)), words]
        table.add_row(*map(Text, cells))
    return table
