"""The page of one run."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidkd.citations import Citation, citations_of
from amidkd.config import EnsembleTeacher, RunConfig, dump_yaml, load
from amidkd.errors import SettingError
from amidkd.evaluation.display import Shown, show
from amidkd.evaluation.metrics import METRICS
from amidkd.record import RunFolder, read_json_lines
from amidkd.report.costs import cost_table, facts_of, parameters_of, versions_of
from amidkd.report.curves import curves_of_run, lines_of_run, note_on
from amidkd.report.extras import extras_of, speed_of
from amidkd.report.overview import cards_of
from amidkd.report.page import render, sample_view
from amidkd.report.point import point_figure
from amidkd.report.results import estimates_of, measured, results_of, suite_of
from amidkd.report.sweep import sweep_of_run
from amidkd.report.tokens import costly_tokens, token_rows
from amidkd.report.words import count, describe_objective, describe_policy, describe_teacher, duration, verb_of

__all__ = ["sentence_of", "write_report"]


def write_report(folder: RunFolder) -> Path:
    """Write ``report.html`` from what the folder's records hold; what is missing is said, with the command for it.

    Args:
        folder: The run.

    Returns:
        Path of the page.

    Raises:
        SettingError: The folder holds neither a run file nor a record.
    """
    record = folder.record()
    if not record and not folder.run_file.is_file():
        raise SettingError(
            f"{folder.path} holds neither run.yaml nor record.json: it is not the folder of a run. "
            "Give the folder named by `output` in the run file"
        )
    config = load(folder.path) if folder.run_file.is_file() else None
    content = {
        "title": folder.path.name,
        "sentence": sentence_of(record, config),
        "folder": shlex.quote(os.path.relpath(folder.path)),
        "verb": record.get("verb", "distill" if config is None else verb_of(config)),
        "warnings": [entry["text"] for entry in record.get("warnings", [])],
        **_of_evaluation(record),
        **_of_training(folder, record, config),
        **_of_samples(folder),
        "configuration": dump_yaml(config) if config is not None else None,
        "versions": versions_of(record),
        "citations": _citations(config),
    }
    return render(folder.report_file, "run.html.j2", sections=_sections(content), **content)


def _of_evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    evaluation = record.get("results", {}).get("evaluation")
    if not evaluation:
        absent = dict.fromkeys(("results", "suite", "speed"))
        return {**absent, "cards": cards_of(record), "extras": [], "metrics": list(METRICS.values())}
    shown = {name for entry in (evaluation, *evaluation.get("suite", {}).values()) for name in measured(entry)}
    return {
        "cards": cards_of(record),
        "results": results_of(evaluation, evaluation.get("settings", {})),
        "suite": suite_of(evaluation),
        "extras": extras_of(evaluation),
        "speed": speed_of(evaluation),
        "metrics": [metric for name, metric in METRICS.items() if name in shown],
    }


def _of_training(folder: RunFolder, record: Mapping[str, Any], config: RunConfig | None) -> dict[str, Any]:
    lines = lines_of_run(folder)
    taught = config is not None and config.teacher is not None and record.get("verb", "distill") == "distill"
    sentence, maps = sweep_of_run(folder.path) or ("", [])
    return {
        "stages": cost_table({folder.path.name: record}),
        "facts": facts_of(record),
        "figures": curves_of_run(lines),
        "curve_note": note_on([lines]),
        "point": point_figure(config.objective, lines) if taught and config is not None else None,
        "sweep_sentence": sentence,
        "sweep_figures": maps,
    }


def _of_samples(folder: RunFolder) -> dict[str, Any]:
    tokens = read_json_lines(folder.tokens_file)
    return {
        "samples": [sample_view(entry) for entry in read_json_lines(folder.samples_file)],
        "tokens": token_rows(tokens),
        "costly": costly_tokens(tokens),
    }


def _sections(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Ids and names of the sections that a page has."""
    every = (
        ("overview", "Overview", content["cards"]),
        ("result", "Result", True),
        ("suite", "Suite", content["suite"]),
        ("extras", "More tests", content["extras"]),
        ("tokens", "Where it loses", True),
        ("assistant", "α and λ", content["point"] or content["sweep_figures"]),
        ("curves", "Curves", True),
        ("cost", "Cost", True),
        ("samples", "Samples", True),
        ("reading", "How to read this", True),
        ("configuration", "Configuration", True),
        ("versions", "Versions", True),
        ("citations", "Citations", content["citations"]),
    )
    return [(name, title) for name, title, there in every if there]


def _citations(config: RunConfig | None) -> list[Citation]:
    return citations_of(config) if config is not None else []


def sentence_of(record: Mapping[str, Any], config: RunConfig | None) -> str:
    """What a run did and how good it became, in one sentence made from its record.

    Args:
        record: ``record.json``.
        config: The run's settings, or None where they are unknown.
    """
    student, teacher = (parameters_of(record, name) for name in ("student", "teacher"))
    text = f"A student of {count(student)} parameters" if student else "A student"
    distilled = config is not None and config.teacher is not None and record.get("verb", "distill") == "distill"
    if distilled and config is not None:
        where = "" if config.teacher is None else describe_teacher(config.teacher)
        if isinstance(config.teacher, EnsembleTeacher):
            # The size in the record is that of the one that the student is measured against.
            text += f" that learns from {where},"
        else:
            text += f" that learns from a teacher of {count(teacher)}" if teacher else " that learns from its teacher"
            text += f" ({where})" if where else ""
        text += f" by {describe_objective(config.objective)}"
        if config.policy.kind != "dataset":
            text += f" (text: {describe_policy(config.policy)})"
    elif config is not None:
        text += " fine-tuned by cross-entropy"
    text += _effort(record)
    return text + _outcome(record.get("results", {}).get("evaluation")) + "."


def _effort(record: Mapping[str, Any]) -> str:
    stages = record.get("stages", {})
    steps, tokens, seconds = (
        sum(float(stage.get(key, 0)) for stage in stages.values()) for key in ("steps", "tokens", "seconds")
    )
    if not steps:
        return ", not trained yet"
    text = f", trained for {steps:,.0f} steps"
    if "warm_start" in stages:
        text += f" ({stages['warm_start'].get('steps', 0):,} of them fine-tuning first)"
    if tokens:
        text += f" on {count(tokens)} supervised tokens"
    if seconds:
        text += f" in {duration(seconds)}"
    return text + (", not finished" if record.get("started") and not record.get("finished") else "")


def _outcome(evaluation: Mapping[str, Any] | None) -> str:
    """The clause on the most telling metric that was measured."""
    if evaluation is None:
        return "; not evaluated yet"
    told = {
        "exact_match_greedy": "answers {} of the held-out prompts exactly",
        "rouge_l_greedy": "reaches a ROUGE-L of {}",
        "nll": "has an NLL of {} a token on held-out text",
    }
    for name, clause in told.items():
        sides = {side: estimates_of(evaluation, side).get(name) for side in ("student", "teacher")}
        student, teacher = sides["student"], sides["teacher"]
        if student is None or (name == "exact_match_greedy" and student.value == 0):
            continue
        text = "; it " + clause.format(_with_error(show(student, METRICS[name])))
        return text + (f", its teacher {_with_error(show(teacher, METRICS[name]))}" if teacher else "")
    return ""


def _with_error(shown: Shown) -> str:
    error = next((error.text for error in shown.errors if error.over == "prompts"), None)
    return shown.text if error is None else f"{shown.text} (± {error} over prompts)"
