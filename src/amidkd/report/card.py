"""The model card that goes with a student: what it is, what it learnt from, and how good it is."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from amidkd.citations import citations_of
from amidkd.config import RunConfig, TeacherConfig, final_config, load, members_of, student_origin
from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import METRICS
from amidkd.evaluation.statistics import Estimate
from amidkd.record import RunFolder, write_atomic
from amidkd.report.words import describe_objective, describe_policy

__all__ = ["refresh_card", "write_card"]


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
        _head(config, folder.path.name, record),
        f"# {folder.path.name}",
        _what(config, record),
        "## How it was made",
        _table(_facts(config, record)),
        *_results(record),
        "## How to use it",
        _use(config),
        *_citations(config, record),
        "## Licence",
        _licence(config),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
        + (f"; commit {record['commit']}" if record.get("commit") else ""),
    ]
    write_atomic(folder.student / "README.md", "\n\n".join(parts) + "\n")


def refresh_card(folder: RunFolder) -> Path | None:
    """Write the card again from the run's own file and record, such as after an evaluation.

    Args:
        folder: The run.

    Returns:
        The card; None where the run has no student yet.
    """
    if not folder.run_file.is_file() or not folder.student.is_dir():
        return None
    whole = load(folder.path)
    write_card(final_config(whole), folder, whole)
    return folder.student / "README.md"


def _head(config: RunConfig, name: str, record: Mapping[str, Any]) -> str:
    """What the hub reads: tags, the models and data behind this one, and its results as ``model-index``."""
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["amidkd"]}
    if config.teacher is not None:
        head["tags"].append("distillation")
    if config.student.kind == "pretrained" and _on_the_hub(config.student.model):
        head["base_model"] = config.student.model
    if _on_the_hub(config.data.train):
        head["datasets"] = [config.data.train]
    results = [_index_entry(title, entry) for title, entry in _evaluations(record)]
    if results:
        head["model-index"] = [{"name": name, "results": results}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=120)}---"


def _on_the_hub(source: str) -> bool:
    """Whether a source is the name of something on the hub: no path that is here, and none of a file."""
    return not Path(source).exists() and not Path(source).is_absolute() and not Path(source).suffix.startswith(".json")


def _evaluations(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The evaluation of the held-out rows, then each task of the suite, with the name of its data."""
    evaluation = record.get("results", {}).get("evaluation")
    if not evaluation:
        return
    yield Path(evaluation["data"]["file"]).name, evaluation
    for task, entry in evaluation.get("suite", {}).items():
        yield task.replace("_", " "), entry


def _index_entry(title: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    source = str(entry["data"]["file"])
    found = entry["student"]["metrics"]
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": title, "type": source if _on_the_hub(source) else Path(source).name},
        "metrics": [
            {"type": name, "name": metric.label, "value": float(found[name]["value"])}
            for name, metric in METRICS.items()
            if name in found and math.isfinite(float(found[name]["value"]))
        ],
    }


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
    """A table for each evaluation: the student beside its teacher, with intervals."""
    parts = []
    for title, entry in _evaluations(record):
        sides = [side for side in ("student", "teacher", "difference") if (entry.get(side) or {}).get("metrics")]
        heads = f"| {entry['data']['rows']} rows | {' | '.join(sides)} |"
        parts.append(f"### {title}\n\n" + "\n".join([heads, "|---" * (1 + len(sides)) + "|", *_rows(entry, sides)]))
    if not parts:
        return []
    note = (
        "“a to b” is a confidence interval over prompts; where there is none, ± is one standard error over them. NLL "
        "and KL are in nats a token. The difference is student − teacher, paired by prompt."
    )
    return ["## Results on held-out rows", *parts, note]


def _rows(entry: Mapping[str, Any], sides: list[str]) -> list[str]:
    def cell(side: str, name: str) -> str:
        found = entry[side]["metrics"].get(name)
        if found is None:
            return "–"
        shown = show(Estimate.from_json(found), METRICS[name], sign=side == "difference")
        if shown.interval:
            return f"{shown.text} ({shown.interval})"
        return " ".join([shown.text, *(f"± {error.text}" for error in shown.errors if error.over == "prompts")])

    return [
        f"| {metric.label} | {' | '.join(cell(side, name) for side in sides)} |"
        for name, metric in METRICS.items()
        if any(name in entry[side]["metrics"] for side in sides)
    ]


def _use(config: RunConfig) -> str:
    template = config.data.prompt_template
    asked = "" if template is None else " Prompts go into the template above first."
    return f"A folder of transformers: `AutoModelForCausalLM.from_pretrained`, `AutoTokenizer.from_pretrained`.{asked}"


def _citations(config: RunConfig, record: Mapping[str, Any]) -> list[str]:
    works = citations_of(config) if record.get("verb") == "distill" else []
    entries = "\n\n".join(work.bibtex for work in works)
    return ["## Citation", f"```bibtex\n{entries}\n```"] if works else []


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
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_in_a_cell(value)} |" for name, value in rows)])


def _in_a_cell(text: str) -> str:
    """Without what ends a cell or its row; a prompt template often has both."""
    return text.replace("\n", "\\n").replace("|", "\\|")


def _name(source: str) -> str:
    """A hub name as it is, a path by its last part."""
    return Path(source).name if Path(source).is_absolute() else source
