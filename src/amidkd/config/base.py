"""What every section of a run file shares: closed keys, and the mark of a field that holds a path."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Section", "path_field"]


class Section(BaseModel):
    """A part of the run file. Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def path_field(default: Any = ..., **kwargs: Any) -> Any:
    """A field whose text names a file, a folder or, where no such path exists, a hub repository.

    ``amidkd.config.load`` resolves it against the run file's folder (or the working directory for
    a command-line override).
    """
    return Field(default, json_schema_extra={"path": True}, **kwargs)
