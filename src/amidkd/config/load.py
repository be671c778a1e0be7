"""From a YAML file and dotted overrides to a checked :class:`RunConfig`, or one clear message."""

import difflib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from amidkd.config.objective import TermConfig
from amidkd.config.schema import RunConfig, StageConfig
from amidkd.config.stages import PLACEHOLDER, merged_stage, stage_difference, stage_names, unknown_stages
from amidkd.config.yaml_text import Loader, read_yaml
from amidkd.errors import SettingError

__all__ = ["RUN_FILE", "apply_override", "dump_yaml", "explain", "load", "models_in", "parse", "read_tree"]

RUN_FILE = "run.yaml"


def load(source: str | os.PathLike[str], overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run file, or the ``run.yaml`` of a run folder, and apply ``section.key=value`` overrides.

    Args:
        source: A YAML file, or a folder that holds ``run.yaml``.
        overrides: Dotted assignments; the value is read as YAML.

    Returns:
        The run's settings. Every path is absolute: those in the file were relative to the file's
        folder, those in overrides to the working directory.

    Raises:
        SettingError: The file is missing or not YAML; a key is unknown (with a suggestion); a value is
            out of its domain; an override is not an assignment.

    Example:
        >>> load("recipes/g2p.yaml", ["objective.alpha=-3"]).objective.alpha  # doctest: +SKIP
        -3.0
    """
    tree, where = read_tree(source, overrides)
    return parse(tree, where=where)


def read_tree(source: str | os.PathLike[str], overrides: Iterable[str] = ()) -> tuple[dict[str, Any], str]:
    """What :func:`load` reads, before it is checked against the schema; and what messages call it."""
    path = Path(source)
    if path.is_dir():
        path = path / RUN_FILE
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise SettingError(f"no run file at {path}{hint}")
    tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
    _resolve_paths(tree, path.resolve().parent)
    for assignment in overrides:
        apply_override(tree, assignment)
    return tree, str(path)


def parse(tree: Mapping[str, Any], where: str = "the run file") -> RunConfig:
    """Check a run file's tree against the schema, and each stage as the run that it is.

    Args:
        tree: Sections by name, as YAML gives them.
        where: What error messages call the source.

    Raises:
        SettingError: With one line for each thing that is wrong.
    """
    tree = dict(tree)
    stages = tree.pop("stages", None)
    names = [] if stages is None else stage_names(stages, where)
    found, lines = _validated(tree)
    whole = []
    # What is wrong with the run file itself would be said again for each stage.
    for number, name in enumerate(names if not lines else (), start=1):
        stage, wrong = _stage(tree, stages[number - 1], number, names)
        lines += [f"stages[{number}].{line}" for line in wrong]
        whole.append({**stage, "name": name})
    if lines:
        raise SettingError("\n".join([f"{where} cannot be used:", *(f"  {line}" for line in lines)]))
    assert found is not None
    checked = [StageConfig.model_validate(stage) for stage in whole]
    return found.model_copy(update={"stages": checked}) if checked else found


def _validated(tree: Mapping[str, Any]) -> tuple[RunConfig | None, list[str]]:
    try:
        return RunConfig.model_validate(tree), []
    except ValidationError as error:
        return None, [explain(detail) for detail in error.errors()]


def _stage(tree: Mapping[str, Any], given: Mapping[str, Any], number: int, names: list[str]) -> tuple[dict, list[str]]:
    """A stage with all its sections, and what is wrong with it."""
    unknown = [key for key in given if key not in {*StageConfig.model_fields, *RunConfig.model_fields}]
    if unknown:
        return {}, [f"{key}: unknown key{_suggest(key, StageConfig.model_fields)}" for key in unknown]
    verb = given.get("verb", "distill")
    if verb not in ("distill", "sft"):
        return {}, [f"verb: must be distill or sft; got {verb!r}{_suggest(verb, ('distill', 'sft'))}"]
    try:
        merged = merged_stage(tree, given, first=number == 1, last=number == len(names))
    except ValueError as error:
        return {}, [str(error)]
    found, lines = _validated(merged)
    if found is None:
        return {}, lines
    if found.teacher is None and verb == "distill":
        return {}, ["teacher: distill needs one; add it, or let this stage have `verb: sft`"]
    earlier = names[: number - 1]
    unknown = unknown_stages(found.teacher, earlier)
    if unknown:
        return {}, [f"teacher.stage: {each!r} is no stage before this one{_suggest(each, earlier)}" for each in unknown]
    return {**_stage_tree(found, first=number == 1), "verb": verb}, []


def _stage_tree(found: RunConfig, *, first: bool) -> dict[str, Any]:
    """The sections of a stage that was checked as a run of its own."""
    stage = {key: value for key, value in _tree_of(found).items() if key in StageConfig.model_fields}
    if not first and stage["student"].get("model") == PLACEHOLDER:
        stage["student"] = {**stage["student"], "kind": "previous"}
        del stage["student"]["model"]
    return stage


def _difference(tree: Mapping[str, Any], stage: Mapping[str, Any], place: int, count: int) -> dict[str, Any]:
    base, _ = _validated(merged_stage(tree, {}, first=place == 0, last=place == count - 1))
    assert base is not None
    return stage_difference(_stage_tree(base, first=place == 0), stage)


def dump_yaml(config: RunConfig) -> str:
    """The resolved run file as text: every setting with the value it has in this run."""
    tree = _tree_of(config)
    if config.sweep is None:
        del tree["sweep"]
    if config.stages is None:
        del tree["stages"]
    else:
        whole = [_tree_of(stage) for stage in config.stages]
        del tree["stages"]
        # The differences alone, so that overrides still reach the stages.
        tree["stages"] = [_difference(tree, stage, place, len(whole)) for place, stage in enumerate(whole)]
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _tree_of(config: RunConfig | StageConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    tree["objective"] = _without_idle(tree["objective"])
    if tree["objective"]["student_text"] is not None:
        tree["objective"]["student_text"] = _without_idle(tree["objective"]["student_text"])
    return tree


def _without_idle(objective: dict[str, Any]) -> dict[str, Any]:
    """An objective as the schema takes it back: beside ``terms`` it refuses a term's own keys."""
    if objective["terms"] is None:
        return objective
    return {key: value for key, value in objective.items() if key not in TermConfig.model_fields}


def _siblings(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.y*ml")) if path.parent.is_dir() else []


def apply_override(tree: dict[str, Any], assignment: str) -> None:
    """Put one ``section.key=value`` into a tree, in place; a path in it is relative to the working directory."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise SettingError(f"override {assignment!r} is not of the form section.key=value")
    if "." not in key and key not in RunConfig.model_fields:
        raise SettingError(f"override {assignment!r}: no section {key!r}{_suggest(key, RunConfig.model_fields)}")
    try:
        value = yaml.load(text, Loader=Loader) if text else None
    except yaml.YAMLError as error:
        raise SettingError(f"override {assignment!r}: its value is not valid YAML: {error}") from None
    node = tree
    parts = key.split(".")
    if parts[0] == "stages" and len(parts) > 2:
        node, parts = _stage_named(tree, parts[1], key), parts[2:]
    if parts[:2] == ["sweep", "space"] and len(parts) > 3:
        # What is varied is itself named by a dotted key.
        parts = [*parts[:2], ".".join(parts[2:])]
    *parents, leaf = parts
    for parent in parents:
        child = node.get(parent)
        if not isinstance(child, dict):
            child = _spell_out(key, parent, child)
            node[parent] = child
        node = child
    branch: dict[str, Any] = {leaf: value}
    for parent in reversed(parents):
        branch = {parent: branch}
    _resolve_paths(branch, Path.cwd())
    for parent in parents:
        branch = branch[parent]
    node[leaf] = branch[leaf]


def _stages_of(tree: dict[str, Any]) -> list[dict[str, Any]]:
    stages = tree.get("stages")
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def _stage_named(tree: dict[str, Any], name: str, key: str) -> dict[str, Any]:
    """The tree of a stage, by its name or its number from 1."""
    found: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(_stages_of(tree), start=1):
        found[str(number)] = found[str(stage.get("name", number))] = stage
    if name not in found:
        raise SettingError(f"override {key}: no stage {name!r}{_suggest(name, found)}")
    return found[name]


_SHORTHAND = {
    "output": "folder",
    "student": "model",
    "teacher": "model",
    "policy": "kind",
    "divergence": "name",
}


def _spell_out(key: str, section: str, value: Any) -> dict[str, Any]:
    """A section written as one bare value, as the mapping that it stands for."""
    if value is None or isinstance(value, bool):
        return {}
    if section in _SHORTHAND:
        return {_SHORTHAND[section]: value}
    raise SettingError(f"override {key}: {section!r} holds {value!r}, which has no keys")


def _resolve_paths(tree: dict[str, Any], base: Path) -> None:
    """Make every path in the tree absolute, in place."""
    _resolve_in(tree, [RunConfig], base)
    output = tree.get("output")
    if isinstance(output, str):
        tree["output"] = str((base / Path(output).expanduser()).resolve())
    elif isinstance(output, dict) and isinstance(output.get("folder"), str):
        output["folder"] = str((base / Path(output["folder"]).expanduser()).resolve())


def _resolve_in(node: dict[str, Any], models: list[type[BaseModel]], base: Path) -> None:
    for name, field in _fields_of(models):
        value = node.get(name)
        inner = sections_in(field.annotation)
        if isinstance(value, str):
            leaf = _SHORTHAND.get(name)
            bare = any(leaf == key and _is_path(each) for key, each in _fields_of(inner))
            node[name] = _absolute(value, base) if bare or _is_path(field) else value
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                _resolve_in(part, inner, base)


def _fields_of(models: list[type[BaseModel]]) -> list[tuple[str, Any]]:
    return [(name, field) for model in models for name, field in model.model_fields.items()]


def _is_path(field: Any) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("path"))


def _absolute(text: str, base: Path) -> str:
    """The absolute path, or the text itself where it can only be a hub name."""
    if "://" in text:
        return text
    path = (base / Path(text).expanduser()).resolve()
    looks_like_path = text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).suffix in _FILE_SUFFIXES
    return str(path) if path.exists() or looks_like_path else text


_FILE_SUFFIXES = {".json", ".jsonl", ".parquet", ".txt", ".yaml", ".yml", ".csv"}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field's type admits, through unions and annotations."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from models_in(part)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field's type admits, also as entries of a list."""
    found = list(models_in(annotation))
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is list:
            found += models_in(get_args(part)[0])
    return found


def explain(detail: Any) -> str:
    """One line for one of pydantic's complaints: key, value, what to do."""
    location = [str(part) for part in detail["loc"] if not _is_tag(part)]
    key = ".".join(location)
    kind, value = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return f"{key}: unknown key{_suggest(location[-1], _keys_at(location[:-1]))}"
    if kind == "missing":
        return f"{key}: missing; {_description(location)}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        given = value.get("kind") if isinstance(value, dict) else value
        return f"{key}: needs `kind:`, one of {_tags(location)}; got {given!r}"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key}: must be a finite number; got {value}"
    if isinstance(value, dict):
        return f"{key or 'run file'}: {message}"
    hint = _suggest(value, re.findall(r"'([^']+)'", message)) if kind == "literal_error" else ""
    return f"{key or 'run file'}: {message}{'' if repr(value) in message else f'; got {value!r}'}{hint}"


_TAGS = {
    "pretrained", "from_scratch", "depth_pruned", "constant", "linear", "cosine", "piecewise", "adaptive",
    "number", "range", "choices", "settings", "switch", "live", "cached", "served", "stage", "ensemble",
    "float", "int", "bool", "str",
    "dataset", "on_policy", "mixed", "sequence_level", "contrastive", "warmup", "transformers", "vllm",
}  # fmt: skip


def _is_tag(part: Any) -> bool:
    """Whether pydantic put this into a location to name a member of a union, not a key."""
    return isinstance(part, str) and (
        part in _TAGS or part.startswith(("tagged-union", "list[", "dict[", "literal[", "union["))
    )


def _annotations_at(location: list[str]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        if part.isdigit():
            continue
        found: list[type[BaseModel]] = []
        for model in models:
            field = model.model_fields.get(part)
            if field is not None:
                found.extend(sections_in(field.annotation))
        models = found
    return models


def _keys_at(location: list[str]) -> list[str]:
    return sorted({key for model in _annotations_at(location) for key in model.model_fields})


def _tags(location: list[str]) -> str:
    tags = [str(m.model_fields["kind"].default) for m in _annotations_at(location) if "kind" in m.model_fields]
    return ", ".join(tags)


def _description(location: list[str]) -> str:
    for model in _annotations_at(location[:-1]):
        field = model.model_fields.get(location[-1])
        if field is not None and field.description:
            return field.description
    return "it has no default"


def _suggest(key: object, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
