"""What `amidkd serve` reads: a run file, of which two sections are looked at, or a model folder."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from amidkd.config.base import Section
from amidkd.config.load import RUN_FILE, apply_override, explain, read_tree
from amidkd.config.serve import ServeConfig
from amidkd.config.teacher import LiveTeacher, TeacherConfig, live_teacher
from amidkd.errors import SettingError

__all__ = ["ServingConfig", "load_serving"]


class ServingConfig(Section):
    """The sections of a run file that a server looks at."""

    teacher: TeacherConfig = Field(description="The model to serve: a section `teacher` with `model`.")
    serve: ServeConfig = Field(default_factory=ServeConfig, description="How it is served.")

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


def load_serving(source: str | os.PathLike[str], overrides: Iterable[str] = ()) -> tuple[LiveTeacher, ServeConfig]:
    """Read which model to serve, and how.

    Args:
        source: A run file or run folder, whose other sections may be absent; or a model folder.
        overrides: Dotted assignments to `teacher` and `serve`.

    Returns:
        The model to load, and the server's settings.

    Raises:
        SettingError: There is neither; a setting is wrong; no model of the teacher can be loaded.
    """
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file() and not (path / RUN_FILE).is_file():
        tree: dict[str, Any] = {"teacher": {"model": str(path.resolve())}}
        for assignment in overrides:
            apply_override(tree, assignment)
        where = str(path)
    else:
        tree, where = read_tree(path, overrides)
    sections = {name: tree[name] for name in ServingConfig.model_fields if name in tree}
    try:
        config = ServingConfig.model_validate(sections)
    except ValidationError as error:
        lines = [f"  {explain(detail)}" for detail in error.errors()]
        raise SettingError("\n".join([f"{where} cannot be served:", *lines])) from None
    model = live_teacher(config.teacher)
    if model is None:
        raise SettingError(
            f"{where} cannot be served: teacher: {config.teacher.title} names no model to load; set teacher.kind=live "
            "and teacher.model"
        )
    return model, config.serve
