"""What a run took, and what made it: tables from ``record.json``."""

from collections.abc import Callable, Mapping
from typing import Any

from amidkd.report.words import count, duration, mebibytes

__all__ = ["cost_table", "facts_of", "versions_of"]

_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("answers", "answers", lambda value: f"{value:,.0f}"),
    ("steps", "steps", lambda value: f"{value:,.0f}"),
    ("tokens", "supervised tokens", count),
    ("seconds", "time", duration),
    ("tokens_per_second", "tokens a second", count),
    ("peak_memory_mb", "peak memory", mebibytes),
)


def cost_table(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The stages of one or several runs with what each took; columns that no stage has are left out.

    Args:
        records: ``record.json`` by name of the run; the name is shown where there are several.

    Returns:
        ``heads`` and ``rows`` of text; a stage that is not complete says so.
    """
    stages = [
        (f"{run}: {name}" if len(records) > 1 else name, stage)
        for run, record in records.items()
        for name, stage in record.get("stages", {}).items()
    ]
    columns = [column for column in _COLUMNS if any(_number(stage, column[0]) is not None for _, stage in stages)]
    rows = [[name.replace("_", " "), *(_shown(stage, key, form) for key, _, form in columns)] for name, stage in stages]
    return {"heads": ["stage", *(head for _, head, _ in columns)], "rows": rows}


def _number(stage: Mapping[str, Any], key: str) -> float | None:
    value = stage.get(key)
    return float(value) if isinstance(value, int | float) else None


def _shown(stage: Mapping[str, Any], key: str, form: Callable[[float], str]) -> str:
    value = _number(stage, key)
    return "–" if value is None else form(value)


def facts_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else a run's cost hangs on: sizes, rows, the loss's backend, and the doctor's estimate where it made one."""
    facts = []
    student, teacher = (parameters_of(record, name) for name in ("student", "teacher"))
    if student:
        facts.append(("student", f"{student:,} parameters"))
    if teacher:
        facts.append(("teacher", f"{teacher:,} parameters"))
    if student and teacher:
        facts.append(("ratio", f"the teacher has {teacher / student:.1f} times as many parameters as the student"))
    rows = record.get("data", {})
    if rows:
        facts.append(("rows", ", ".join(f"{number:,} {what}" for what, number in rows.items())))
    chain = record.get("chain")
    if chain:
        parts = (
            f"{one['name']} ({one['policy']}, {one['steps']:,} steps, {duration(one['seconds'])})" for one in chain
        )
        facts.append(("stages of the run file", " → ".join(parts)))
    backends = sorted({str(stage["backend"]) for stage in record.get("stages", {}).values() if stage.get("backend")})
    if backends:
        facts.append(("loss computed by", ", ".join(backends)))
    estimate = record.get("estimate")
    if estimate:
        foreseen = f"{duration(estimate['seconds'])} and {mebibytes(estimate['peak_memory_mb'])}"
        used = f"{duration(estimate['used_seconds'])} and {mebibytes(estimate['used_peak_memory_mb'])}"
        facts.append(("estimate", f"{foreseen} by the doctor before the run; used: {used}"))
    return facts


def parameters_of(record: Mapping[str, Any], name: str) -> int | None:
    """How many parameters a model of the run has, or None where the record does not say."""
    entries = (record.get("models", {}), record.get("results", {}).get("evaluation", {}))
    value = next((entry[name]["parameters"] for entry in entries if "parameters" in entry.get(name, {})), None)
    return int(value) if value is not None else None


def versions_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, commit, device and seeds that made a record."""
    entries = list(record.get("versions", {}).items())
    for key in ("commit", "device", "processes", "seeds", "started", "finished"):
        value = record.get(key)
        if value is None:
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {item}" for name, item in value.items())
        entries.append((key, str(value)))
    return [(str(name), str(value)) for name, value in entries]
