"""Write docs/reference/ from the code: the run file's settings and the public names. `--check` only compares."""

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from amidkd.config import RunConfig, StageConfig
from amidkd.config.load import models_in

FOLDER = Path(__file__).parent / "reference"
API = [
    "amidkd.maths",
    "amidkd.signals",
    "amidkd.kernels",
    "amidkd.config",
    "amidkd.record",
    "amidkd.data",
    "amidkd.models",
    "amidkd.teachers",
]
API += ["amidkd.policies", "amidkd.training", "amidkd.evaluation", "amidkd.report", "amidkd.doctor", "amidkd.demo"]


def run_file_page() -> str:
    """Every section and setting, in the schema's order."""
    lines = [
        "# The run file",
        "",
        "Made from `amidkd.config` by `make docs`. Paths in a file are relative to it; `section.key=value` on the",
        "command line overrides any setting, with paths relative to the working directory.",
        "",
    ]
    written: set[type[BaseModel]] = set()
    for name, field in RunConfig.model_fields.items():
        lines += [f"## `{name}`", "", field.description or "", ""]
        lines += _sections(field.annotation, name, written)
    return "\n".join(lines).rstrip() + "\n"


def _sections(annotation: Any, key: str, written: set[type[BaseModel]]) -> list[str]:
    lines: list[str] = []
    for model in _models(annotation):
        if model in written:
            continue
        written.add(model)
        kind = model.model_fields.get("kind")
        title = f"`{key}`" + (f" with `kind: {kind.default}`" if kind is not None else "")
        lines += [f"### {title}", "", inspect.cleandoc(model.__doc__ or ""), "", *_table(model), ""]
        for name, field in model.model_fields.items():
            lines += _sections(field.annotation, f"{key}.{name}", written)
    return lines


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field holds, alone or in a list."""
    lists = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is list]
    return [*models_in(annotation), *(model for part in lists for model in models_in(get_args(part)[0]))]


def _table(model: type[BaseModel]) -> list[str]:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        needed = "the run file's" if model is StageConfig else "required"
        default = needed if field.is_required() else _default(field)
        limits = " ".join(str(m) for m in field.metadata if type(m).__module__ == "annotated_types")
        described = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_type(field.annotation)}{_limits(limits)} | {default} | {described} |")
    return rows


def _default(field: Any) -> str:
    value = field.default_factory() if field.default_factory else field.default
    if isinstance(value, BaseModel):
        return "its defaults"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{value}`".replace("|", "\\|")


def _limits(text: str) -> str:
    names = {"Gt(gt=": "> ", "Ge(ge=": "≥ ", "Lt(lt=": "< ", "Le(le=": "≤ "}
    parts = [
        sign + part[len(prefix) : -1]
        for part in text.split()
        for prefix, sign in names.items()
        if part.startswith(prefix)
    ]
    return f", {' and '.join(parts)}" if parts else ""


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is None:
        is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return "section" if is_section else getattr(annotation, "__name__", str(annotation))
    if origin is Literal:
        return " or ".join(f"`{value}`".replace("|", "\\|") for value in parts)
    if origin in (list, tuple):
        return f"{origin.__name__} of {', '.join(_type(part) for part in parts)}"
    if origin is dict:
        return "mapping"
    if origin is Annotated:
        return _type(parts[0])
    return " or ".join(dict.fromkeys(_type(part) for part in parts))


def api_page() -> str:
    """Every public name of the library's layers, with its signature and first line."""
    lines = ["# Public names", "", "Made from the docstrings by `make docs`; `help(name)` shows each whole.", ""]
    for module_name in API:
        module = importlib.import_module(module_name)
        lines += [f"## `{module_name}`", "", inspect.cleandoc(module.__doc__ or "").splitlines()[0], ""]
        for name in sorted(module.__all__):
            member = getattr(module, name)
            doc = inspect.getdoc(member) if inspect.isclass(member) or inspect.isfunction(member) else None
            lines.append(f"- `{name}`" + (f": {doc.splitlines()[0]}" if doc else ""))
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the pages, or with ``--check`` say which differ."""
    pages = {"run-file.md": run_file_page(), "api.md": api_page()}
    if "--check" in sys.argv:
        stale = [name for name, text in pages.items() if (FOLDER / name).read_text(encoding="utf-8") != text]
        if stale:
            sys.stderr.write(f"stale: {', '.join(stale)}; run `make docs` and commit the result\n")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
