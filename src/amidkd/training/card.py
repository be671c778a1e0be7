"""The model card that goes with a student: what it is, what it learnt from, and how good it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig, TeacherConfig, members_of, student_origin
from amidkd.record import RunFolder, write_atomic

__all__ = ["write_card"]


def write_card(config: RunConfig, folder: RunFolder, whole: RunConfig) -> None:
    """Write ``student/README.md`` from the run's record.

    Args:
        config: The run.
        folder: Its folder, with the record.
        whole: The run file, of which the run may be a stage: the card names what the first one started from.
    """
    config = config.model_copy(update={"student": student_origin(whole, folder.path)})
    record = folder.record()
    parts = [
        _head(config),
        f"# {folder.path.name}",
        _what(config, record),
        "## How it was made",
        _table(_facts(config, record)),
        *_results(record),
        "## Licence",
        _licence(config),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
        + (f"; commit {record['commit']}" if record.get("commit") else ""),
    ]
    write_atomic(folder.student / "README.md", "\n\n".join(parts) + "\n")


def _head(config: RunConfig) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- amidkd"]
    if config.teacher is not None:
        lines.append("- distillation")
    if config.student.kind == "pretrained" and not Path(config.student.model).exists():
        lines.append(f"base_model: {config.student.model}")
    return "\n".join([*lines, "---"])


def _what(config: RunConfig, record: Mapping[str, Any]) -> str:
    size = record.get("models", {}).get("student", {}).get("parameters")
    shape = {
        "pretrained": "that started from a pretrained model",
        "from_scratch": "that started from random weights",
        "depth_pruned": "that started from evenly spaced layers of its teacher",
    }[config.student.kind]
    number = f"{size:,} parameters" if size else "unknown size"
    way = "fine-tuned by cross-entropy"
    if record.get("verb") == "distill" and config.teacher is not None:
        way = f"distilled from {_teachers(config.teacher)}"
    return f"A causal language model of {number}, {shape}, {way} with amidkd."


def _facts(config: RunConfig, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    # Loads the drawing library, which training itself has no need of.
    from amidkd.report.words import describe_objective, describe_policy

    facts = []
    if config.student.kind == "pretrained":
        facts.append(("started from", f"`{_name(config.student.model)}`"))
    if config.teacher is not None and record.get("verb") == "distill":
        facts += [("teacher", _teachers(config.teacher)), ("objective", describe_objective(config.objective))]
    if config.policy.kind != "dataset":
        facts.append(("text learnt from", describe_policy(config.policy)))
    counts = ", ".join(f"{number:,} {reason}" for reason, number in record.get("data", {}).items())
    facts.append(("data", f"`{_name(config.data.train)}`" + (f" ({counts})" if counts else "")))
    if config.data.prompt_template is not None:
        facts.append(("prompt template", f"`{config.data.prompt_template}`"))
    for name, stage in record.get("stages", {}).items():
        if "steps" in stage:
            facts.append((name.replace("_", " "), f"{stage['steps']:,} steps, {stage['tokens']:,} supervised tokens"))
    return facts


def _results(record: Mapping[str, Any]) -> list[str]:
    metrics = record.get("results", {}).get("evaluation", {}).get("student", {}).get("metrics", {})
    rows = [
        (name.replace("_", " "), f"{entry['value']:.4g}")
        for name, entry in metrics.items()
        if isinstance(entry, Mapping) and isinstance(entry.get("value"), int | float)
    ]
    return ["## Results on held-out rows", _table(rows)] if rows else []


def _licence(config: RunConfig) -> str:
    sources = []
    if config.student.kind == "pretrained":
        sources.append(f"the weights of `{_name(config.student.model)}`")
    if config.teacher is not None:
        sources.append(f"the teacher {_teachers(config.teacher)}")
    sources.append(f"the data `{_name(config.data.train)}`")
    return (
        f"This model derives from {', '.join(sources)}. Their licences decide how it may be used; "
        "some forbid training other models on a model's outputs. Check them before you publish it."
    )


def _teachers(teacher: TeacherConfig) -> str:
    """Names of the teachers, and where their distributions came from where that is not memory."""
    places = {"cached": ", cached on disk", "served": ", served over the network"}
    names = [f"`{_name(member.title)}`{places.get(member.kind, '')}" for member in members_of(teacher)]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _name(source: str) -> str:
    """A hub name as it is, a path by its last part."""
    return Path(source).name if Path(source).is_absolute() else source
