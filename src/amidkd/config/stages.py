"""Stages of a run: partial run files, each merged into the run file and starting from the last one's student."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amidkd.config.objective import TermConfig
from amidkd.config.schema import PretrainedStudent, PreviousStudent, RunConfig, StageConfig
from amidkd.config.teacher import EnsembleTeacher, LiveTeacher, StageTeacher, members_of
from amidkd.errors import SettingError

__all__ = [
    "PLACEHOLDER",
    "STAGES",
    "final_config",
    "merged_stage",
    "stage_configs",
    "stage_difference",
    "stage_folder",
    "stage_names",
    "student_origin",
    "unknown_stages",
]

STAGES = "stages"
"""Folder of the stages before the last, in the run folder."""

_SECTIONS = tuple(name for name in StageConfig.model_fields if name not in ("name", "verb"))
_BARE = {"student": "model", "teacher": "model", "policy": "kind", "divergence": "name"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def stage_configs(config: RunConfig) -> list[RunConfig]:
    """Each stage as a run of its own, in order; without stages, the run itself.

    Every stage but the last has its run folder in ``stages/`` of the run folder; the last one's is the run folder, so
    that what is made there is the run's.

    Args:
        config: The run.
    """
    if config.stages is None:
        return [config]
    found = []
    for place, stage in enumerate(config.stages):
        student: Any = stage.student
        if isinstance(student, PreviousStudent):
            model = str(stage_folder(config, place - 1) / "student")
            student = PretrainedStudent(model=model, **student.model_dump(exclude={"kind"}))
        sections = {name: getattr(stage, name) for name in _SECTIONS}
        sections["teacher"] = _found_teacher(config, stage.teacher)
        output = config.output.model_copy(update={"folder": str(stage_folder(config, place))})
        update = {**sections, "student": student, "output": output, "stages": None}
        found.append(config.model_copy(update=update))
    return found


def _found_teacher(config: RunConfig, teacher: Any) -> Any:
    """A stage's teacher, with the students of earlier stages as the models in their folders."""
    if isinstance(teacher, EnsembleTeacher):
        found = [_found_teacher(config, member) for member in teacher.teachers]
        return teacher.model_copy(update={"teachers": found})
    if not isinstance(teacher, StageTeacher):
        return teacher
    assert config.stages is not None
    place = [stage.name for stage in config.stages].index(teacher.stage)
    given = teacher.model_dump(exclude={"kind", "stage", "name"})
    return LiveTeacher(model=str(stage_folder(config, place) / "student"), name=teacher.name or teacher.stage, **given)


def unknown_stages(teacher: Any, earlier: list[str]) -> list[str]:
    """The stages that a teacher names and that do not come before it.

    Args:
        teacher: A stage's teacher, or None.
        earlier: Names of the stages before.
    """
    named = [] if teacher is None else [member for member in members_of(teacher) if isinstance(member, StageTeacher)]
    return [member.stage for member in named if member.stage not in earlier]


def student_origin(config: RunConfig, folder: Path) -> Any:
    """What the student of a stage began as: its own section, or that of the last stage before with one of its own.

    Args:
        config: The run.
        folder: Where the stage runs.
    """
    origin: Any = config.student
    for place, (found, stage) in enumerate(zip(stage_configs(config), config.stages or (), strict=False)):
        if place == 0 or not isinstance(stage.student, PreviousStudent):
            origin = found.student
        if Path(found.output.folder) == folder:
            break
    return origin


def final_config(config: RunConfig) -> RunConfig:
    """The run whose student is in the run folder: the last stage, or the run itself."""
    return stage_configs(config)[-1]


def stage_folder(config: RunConfig, place: int) -> Path:
    """Where a stage runs.

    Args:
        config: A run with stages.
        place: Which of them, from 0.
    """
    assert config.stages is not None
    whole = Path(config.output.folder)
    return whole if place == len(config.stages) - 1 else whole / STAGES / config.stages[place].name


def stage_names(stages: list[Any], where: str) -> list[str]:
    """Names of the stages of a tree: those given, or their numbers from 1.

    Args:
        stages: The partial trees.
        where: What messages call the source.

    Raises:
        SettingError: Not a list of mappings; a name that is no plain folder name, a number or not unique.
    """
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise SettingError(
            f"{where} cannot be used:\n  stages: must be a list of at least one partial run file, such as "
            "[{policy: {kind: warmup}}, {policy: {kind: mixed}}]"
        )
    names: list[str] = []
    for number, stage in enumerate(stages, start=1):
        name = str(stage.get("name", number))
        wrong = "is not a plain folder name (letters, digits, `.`, `_`, `-`)" if not _NAME.fullmatch(name) else ""
        if name.isdigit() and name != str(number):
            wrong = f"is a number, but not this stage's: {number}"
        if name in names:
            wrong = "is another stage's name already"
        if wrong:
            raise SettingError(f"{where} cannot be used:\n  stages[{number}].name: {name!r} {wrong}")
        names.append(name)
    return names


def merged_stage(base: Mapping[str, Any], stage: Mapping[str, Any], *, first: bool, last: bool) -> dict[str, Any]:
    """The tree of a run file with a stage's settings in place of its own.

    Sections are merged key by key; one whose ``kind`` (of a divergence: ``name``) changes is replaced. Not taken over
    from the run file: a later stage's model, which is the last stage's student, and its warm start; adapters that are
    not merged and evaluation after training, which are the last stage's.

    Args:
        base: The run file's tree, without ``stages``.
        stage: The stage's.
        first: Whether it is the first.
        last: Whether it is the last.

    Raises:
        ValueError: A setting that a stage cannot have; the text names it.
    """
    known = {**stage}
    for key in ("name", "verb"):
        known.pop(key, None)
    for key, advice in (
        ("output", "the run file's `output` is the folder of all stages"),
        ("stages", "a stage has no stages of its own"),
    ):
        if key in known:
            raise ValueError(f"{key}: not a stage's setting: {advice}")
    if isinstance(known.get("training"), dict) and "resume_from_checkpoint" in known["training"]:
        raise ValueError("training.resume_from_checkpoint: not a stage's setting: set it for the whole run")
    merged = {key: value for key, value in base.items() if key != "output"}
    if not first:
        inherits, known["student"] = _later_student(known.get("student"))
        merged["student"] = _inherited_student(base.get("student")) if inherits else {}
    if not last:
        merged = _without_what_is_last(merged)
        _check_adapters(known.get("student"))
    for key, value in known.items():
        if value is not None:
            merged[key] = _merged(key, merged.get(key), value)
    return {**merged, "output": base.get("output")}


PLACEHOLDER = "the last stage's student"
"""Stands for the model of a stage that goes on with the last one's student, until the stages are known."""


def _inherited_student(student: Any) -> dict[str, Any]:
    """What of the run file's student holds for later stages."""
    given = student if isinstance(student, dict) else {}
    kept = {key: given[key] for key in ("dtype", "lora", "trust_remote_code") if key in given}
    return {"kind": "pretrained", "model": PLACEHOLDER, **kept}


def _later_student(student: Any) -> tuple[bool, dict[str, Any]]:
    """Whether a stage goes on with the last one's student, and what it says of its student."""
    if student is None:
        return True, {}
    if isinstance(student, dict) and student.get("kind", "previous") != "previous":
        return False, student
    if not isinstance(student, dict) or "model" in student:
        raise ValueError(
            "student: a stage after the first starts from the last one's student, and then has no model here; for a "
            "student of its own, as in a chain of teacher assistants, say which `kind` it is (such as pretrained)"
        )
    return True, {key: value for key, value in student.items() if key != "kind"}


def _without_what_is_last(tree: dict[str, Any]) -> dict[str, Any]:
    """The student has to be a whole model for the next stage; and only the last one's is measured."""
    student, evaluation = tree.get("student"), tree.get("evaluation")
    if isinstance(student, dict) and isinstance(student.get("lora"), dict):
        lora = {key: value for key, value in student["lora"].items() if key != "merge"}
        tree = {**tree, "student": {**student, "lora": lora}}
    if isinstance(evaluation, dict):
        kept = {key: value for key, value in evaluation.items() if key != "after_training"}
        tree = {**tree, "evaluation": kept}
    return tree


def _check_adapters(student: Any) -> None:
    lora = student.get("lora") if isinstance(student, dict) else None
    if isinstance(lora, dict) and lora.get("merge") is False:
        raise ValueError(
            "student.lora.merge: the next stage starts from this student, so its adapters must be merged; remove it, "
            "or set it in the last stage"
        )


def _merged(key: str, old: Any, new: Any) -> Any:
    """One value in place of another: mappings key by key, anything else as a whole."""
    shorthand = _BARE.get(key)
    if shorthand is not None:
        old = {shorthand: old} if isinstance(old, str) else old
        new = {shorthand: new} if isinstance(new, str) else new
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    told = "name" if key == "divergence" else "kind"
    before = _told(key, old, told)
    if told in new and before is not None and before != new[told]:
        return new
    if key in ("objective", "student_text"):
        old = _one_or_several(old, new)
    return {**old, **{name: _merged(name, old.get(name), value) for name, value in new.items()}}


def stage_difference(base: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage has to say beside the run file: :func:`merged_stage` backwards.

    Args:
        base: The tree of a stage that says nothing.
        stage: The tree of the stage, with all its settings.
    """
    found = {}
    for key, value in stage.items():
        old = base.get(key)
        told = "name" if key == "divergence" else "kind"
        if key in base and old == value:
            continue
        both = isinstance(old, dict) and isinstance(value, dict) and old.get(told) == value.get(told)
        found[key] = stage_difference(dict(old or {}), value) if both else value
    return found


def _told(key: str, section: dict[str, Any], told: str) -> Any:
    if key == "student" and "kind" not in section and "model" in section:
        return "pretrained"
    if key == "teacher" and "kind" not in section and section:
        return "live"
    return section.get(told)


def _one_or_several(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An objective is one term or a list of them; the stage's form is the one that holds."""
    if new.get("terms") is not None:
        return {key: value for key, value in old.items() if key not in TermConfig.model_fields}
    if set(TermConfig.model_fields) & set(new) and "terms" not in new:
        return {key: value for key, value in old.items() if key != "terms"}
    return old
