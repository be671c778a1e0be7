"""The templates, and the grid that both pages show their results in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from amidkd import __version__
from amidkd.evaluation.display import Shown
from amidkd.evaluation.text import exact_match
from amidkd.record import write_atomic

__all__ = ["Grid", "GridRow", "Head", "render", "sample_view"]


@dataclass(frozen=True)
class Head:
    """The name of a row or a column, and a smaller line below it."""

    title: str
    detail: str = ""


@dataclass(frozen=True)
class GridRow:
    """A row of results.

    Args:
        head: Its name.
        cells: Its numbers; None is one that is not there.
        group: Under which heading it stands; rows of one group follow each other.
        picture: Its numbers on a line, or None.
    """

    head: Head
    cells: tuple[Shown | None, ...]
    group: str = ""
    picture: Markup | None = None


@dataclass(frozen=True)
class Grid:
    """A table of results.

    Args:
        corner: Text of the corner.
        heads: Columns.
        rows: Rows, each with one cell a column.
    """

    corner: str
    heads: tuple[Head, ...]
    rows: tuple[GridRow, ...]

    def turned(self) -> "Grid":
        """The same with rows as columns."""
        rows = tuple(
            GridRow(head, tuple(row.cells[index] for row in self.rows)) for index, head in enumerate(self.heads)
        )
        return Grid(self.corner, tuple(row.head for row in self.rows), rows)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("amidkd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(path: Path, template: str, **content: Any) -> Path:
    """Fill a template and write the page atomically.

    Args:
        path: Where the page goes.
        template: File name under ``templates``.
        content: What the template shows; text is escaped.
    """
    page = _environment().get_template(template).render(version=__version__, **content)
    write_atomic(path, page)
    return path


def sample_view(entry: Mapping[str, Any], references: int = 3) -> dict[str, Any]:
    """A sample as the template shows it, each answer beside whether it equals a reference.

    Args:
        entry: A line of ``samples.jsonl``: ``prompt``, ``references``, ``answers`` by name.
        references: How many references are shown.
    """
    known: Sequence[str] = entry.get("references") or ()
    answers = [
        {"label": label, "text": text, "right": bool(known) and exact_match(text, known) == 1.0}
        for label, text in entry["answers"].items()
        if text is not None
    ]
    divergence = entry.get("kl_teacher_student")
    mine = [answer["right"] for answer in answers if not answer["label"].startswith("teacher")]
    return {
        "prompt": entry["prompt"],
        "references": known[:references],
        "answers": answers,
        # What samples are sorted by: how many of the student's answers are right; the distance from the teacher.
        "right": sum(mine) / len(mine) if known and mine else None,
        "kl": divergence,
        "note": None if divergence is None else f"KL(teacher‖student) {divergence:.3f} nats a token on the reference",
    }
