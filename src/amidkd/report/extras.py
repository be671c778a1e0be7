"""Results that are no metric of the rows: drafts, a judge's verdicts, programs, the harness's tasks, and speed."""

from collections.abc import Iterator, Mapping
from typing import Any

from amidkd.evaluation.statistics import Estimate
from amidkd.report.words import count, mebibytes, number, signed

__all__ = ["extras_of", "speed_of"]

_SIDES = ("student", "teacher")


def extras_of(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tables of what else an evaluation holds; nothing for what was not asked for.

    Args:
        evaluation: ``results.evaluation`` of a record.

    Returns:
        For each: ``title``, ``heads``, ``rows`` of text and ``notes``.
    """
    parts = (("speculative", _drafts), ("judge", _judge), ("code", _code), ("lm_eval", _harness))
    tables = [table(evaluation[key]) for key, table in parts if evaluation.get(key)]
    # A judge that gave no verdict is among what is missing.
    return [table for table in tables if table["rows"]]


def _drafts(found: Mapping[str, Any]) -> dict[str, Any]:
    judged = max(1, found["judged"])
    rows = [
        ["tokens drafted", f"{found['drafted']:,}"],
        ["judged by the teacher", f"{found['judged']:,}"],
        ["kept of the judged", f"{found['accepted']:,} ({100 * found['accepted'] / judged:.1f} %)"],
        ["tokens a pass of the teacher", f"{found['tokens_per_step']:.2f}"],
        ["the same, predicted from 1 − TV", f"{found['tokens_per_step_predicted']:.2f}"],
        ["tokens a second with drafts", count(found["tokens_per_second"])],
        ["the teacher alone", count(found["tokens_per_second_teacher_alone"])],
        ["speed-up", f"{found['speedup']:.2f} ×"],
    ]
    note = (
        f"{found['prompts']} prompts, {found['draft_tokens']} tokens drafted at a time. The teacher judges a draft "
        "from its first token on, up to the first that it does not keep."
    )
    return {"title": "As a draft for the teacher", "heads": ["speculative decoding", ""], "rows": rows, "notes": [note]}


def _judge(found: Mapping[str, Any]) -> dict[str, Any]:
    sets = {"held-out rows": found, **found.get("suite", {})}
    judged = {name: counts for name, counts in sets.items() if counts.get("pairs")}
    rows = [
        [name, *(f"{counts[key]:,}" for counts in judged.values())]
        for key, name in (("wins", "wins"), ("ties", "ties"), ("losses", "losses"))
    ]
    notes = [
        f"{sum(counts['pairs'] for counts in judged.values())} pairs of answers, each shown in both orders: an answer "
        "wins where it wins in both, and all else is a tie. The verdicts are in judge.jsonl."
    ]
    for name, counts in judged.items():
        where = f" ({name.replace('_', ' ')})" if len(judged) > 1 else ""
        if counts.get("orders_agree") is not None:
            agree = 100 * counts["orders_agree"]
            notes.append(f"Both orders gave the same verdict in {agree:.0f} % of the pairs{where}.")
        if counts.get("prefers_first") is not None:
            first = 100 * counts["prefers_first"]
            notes.append(f"Of the verdicts with a winner, {first:.0f} % chose the answer shown first{where}.")
        if counts.get("unread"):
            notes.append(f"Replies without a verdict, after asking again: {counts['unread']}{where}.")
    heads = ["student’s answers", *(name.replace("_", " ") for name in judged)]
    return {"title": "Before a judge", "heads": heads, "rows": rows if judged else [], "notes": notes}


def _code(found: Mapping[str, Any]) -> dict[str, Any]:
    sides = [side for side in _SIDES if side in found]
    programs = [max(1, found[side]["programs"]) for side in sides]

    def row(what: str, numbers: list[int]) -> list[str]:
        pairs = zip(numbers, programs, strict=True)
        return [what, *(f"{number:,} ({100 * number / whole:.1f} %)" for number, whole in pairs)]

    causes = dict.fromkeys(why for side in sides for why in found[side]["stopped_by"])
    rows = [row("passed", [found[side]["passed"] for side in sides])]
    rows += [row(why, [found[side]["stopped_by"].get(why, 0) for side in sides]) for why in causes]
    heads = ["what became of the programs", *sides]
    return {"title": "Answers run as code", "heads": heads, "rows": rows, "notes": []}


def _harness(found: Mapping[str, Any]) -> dict[str, Any]:
    sides = [side for side in (*_SIDES, "difference") if any(side in metric for _, _, metric in _measured(found))]
    rows = []
    for task, rows_of_task, metric in _measured(found):
        better = f", {metric['better']} is better" if metric.get("better") else ""
        detail = f"{metric['label']}{better}, {rows_of_task} rows" if rows_of_task else metric["label"] + better
        cells = (_estimate(metric.get(side), sign=side == "difference") for side in sides)
        rows.append([f"{task}: {detail}", *cells])
    notes = [f"lm-evaluation-harness {found['harness']}. ± is one standard error over rows."]
    if found.get("num_fewshot") is not None:
        notes.append(f"Examples before each question: {found['num_fewshot']}.")
    if found.get("limit"):
        notes.append(f"Only the first {found['limit']} rows of each task.")
    return {"title": "Tasks of the evaluation harness", "heads": ["task", *sides], "rows": rows, "notes": notes}


def _measured(found: Mapping[str, Any]) -> Iterator[tuple[str, int | None, Mapping[str, Any]]]:
    for task, entry in found["tasks"].items():
        for metric in entry["metrics"].values():
            yield task, entry.get("rows"), metric


def _estimate(entry: Mapping[str, Any] | None, *, sign: bool) -> str:
    if entry is None:
        return "–"
    found = Estimate.from_json(entry)
    error = found.error("prompts")
    value = float(f"{found.value:.4g}")
    return (signed(value) if sign else number(value)) + (f" ± {error.value:.2g}" if error is not None else "")


def speed_of(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Speed, size and work of the student beside the teacher's.

    Args:
        evaluation: ``results.evaluation`` of a record.

    Returns:
        ``heads``, ``rows`` of text and ``notes``; None where it was not measured.
    """
    found = evaluation.get("speed")
    if not found:
        return None
    sides = [side for side in _SIDES if side in found]
    lines = (
        ("tokens_per_second", "greedy tokens a second", count),
        ("parameters", "parameters", lambda value: f"{value:,}"),
        ("weights_bytes", "weights", _memory),
        ("work_per_token", "operations a token", count),
        ("peak_bytes", "peak memory", _memory),
    )
    rows = []
    for key, name, form in lines:
        values = [found[side].get(key) for side in sides]
        if all(value is None for value in values):
            continue
        row = [name, *("–" if value is None else form(value) for value in values)]
        if len(sides) == 2:
            row.append(_ratio(*values))
        rows.append(row)
    notes = ["Operations: floating-point operations of a forward pass, attention over earlier tokens left out."]
    # Without prompts there was nothing to time.
    if "rounds" in found:
        notes.insert(
            0,
            f"Median of {found['rounds']} rounds of {found['new_tokens']} tokens to {found['batch_size']} prompts at "
            f"once, the models taking turns, on {found['device']}.",
        )
    heads = ["", *sides, *(["student / teacher"] if len(sides) == 2 else [])]
    return {"heads": heads, "rows": rows, "notes": notes}


def _memory(value: float) -> str:
    return mebibytes(value / 2**20) if value >= 2**20 else f"{value / 2**10:.0f} KiB"


def _ratio(student: float | None, teacher: float | None) -> str:
    return "–" if student is None or not teacher else f"{student / teacher:.2g} ×"
