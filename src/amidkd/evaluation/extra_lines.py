"""Extras of an evaluation as lines of text: speed, drafts, code, the judge, tasks of the harness."""

from collections.abc import Iterator, Mapping
from typing import Any

from amidkd.evaluation.statistics import Estimate

__all__ = ["extra_lines"]


def extra_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """What stands beside the table of metrics.

    Args:
        evaluation: ``results.evaluation`` of a record.
    """
    parts = {"speed": _speed, "speculative": _drafts, "code": _code, "judge": _judge, "lm_eval": _tasks}
    return [line for name, lines in parts.items() if evaluation.get(name) for line in lines(evaluation[name])]


def _speed(entry: Mapping[str, Any]) -> Iterator[str]:
    sides = [side for side in ("student", "teacher") if side in entry]
    sizes = " against ".join(f"{_large(entry[side]['weights_bytes'], 'B')}" for side in sides)
    if "batch_size" not in entry:
        yield f"Weights: {sizes} ({' and '.join(sides)})"
        return
    rates = ", ".join(f"{side} {_rate(entry[side]['tokens_per_second'])} tokens/s" for side in sides)
    factor = f" ({entry['speedup']:.1f} times as fast)" if "speedup" in entry else ""
    yield f"Speed: {rates}{factor}, greedy, {entry['batch_size']} prompts at once, {entry['device']}; weights {sizes}"


def _drafts(entry: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"As a draft, {entry['draft_tokens']} tokens at a time: {entry['tokens_per_step']:.2f} tokens a pass of the "
        f"teacher over {entry['prompts']} prompts, {entry['speedup']:.2f} times the teacher's speed alone"
    )


def _code(entry: Mapping[str, Any]) -> Iterator[str]:
    for side in ("student", "teacher"):
        if side not in entry:
            continue
        found = entry[side]
        causes = ", ".join(f"{cause} ({count})" for cause, count in list(found["stopped_by"].items())[:4])
        rest = f"; the others stopped by {causes}" if causes else ""
        yield f"Code: {found['passed']} of the {side}'s {found['programs']} programs pass{rest}"


def _judge(entry: Mapping[str, Any]) -> Iterator[str]:
    for name, found in {"": entry, **entry.get("suite", {})}.items():
        if not found.get("pairs"):
            continue
        where = f" ({name})" if name else ""
        agree, first = found["orders_agree"], found["prefers_first"]
        bias = "" if first is None else f", the first answer preferred in {100 * first:.0f} %"
        yield (
            f"Judge {entry['model']}{where}: {found['wins']} wins, {found['ties']} ties, {found['losses']} losses "
            f"against the {entry['against']}; both orders agree on {100 * agree:.0f} %{bias}"
        )


def _tasks(entry: Mapping[str, Any]) -> Iterator[str]:
    for task, found in entry["tasks"].items():
        for metric in found["metrics"].values():
            shown = [
                f"{side} {_number(metric[side])}" for side in ("student", "teacher", "difference") if side in metric
            ]
            rows = "" if found["rows"] is None else f", {found['rows']} rows"
            yield f"lm-eval {task}, {metric['label']}{rows}: {', '.join(shown)}"


def _number(entry: Mapping[str, Any]) -> str:
    estimate = Estimate.from_json(entry)
    error = estimate.error("prompts")
    text = f"{estimate.value:.3f}" + ("" if error is None else f" ±{error.value:.3f}")
    return text.replace("-", "−")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _large(value: float, unit: str) -> str:
    """Three digits with k, M or G."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()
