"""Which report, in which format, and where it goes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from amidkd.record import RunFolder
from amidkd.report.compare import Compared, compared, write_compared_page
from amidkd.report.run import write_report
from amidkd.report.sweep import is_sweep, write_sweep_report
from amidkd.report.text import write_compared_text, write_run_text, write_sweep_text

__all__ = ["Format", "compare_runs", "report_on", "write_compared"]

Format = Literal["html", "md", "json"]


def report_on(folder: Path, form: Format = "html") -> Path:
    """Write ``report.html``, ``report.md`` or ``report.json`` of a run or a sweep, into its folder.

    Args:
        folder: The folder of a run or of a sweep.
        form: Which of the three.

    Returns:
        Path of the file.

    Raises:
        SettingError: The folder is of neither.
    """
    if is_sweep(folder):
        return write_sweep_report(folder) if form == "html" else write_sweep_text(folder, form)
    run = RunFolder(folder)
    return write_report(run) if form == "html" else write_run_text(run, form)


def compare_runs(paths: Sequence[Path], *, form: Format = "html", path: Path | None = None) -> Path:
    """Compare runs with the first of them on the prompts that all answered, and write what came out.

    Runs whose settings differ in ``training.seed`` alone are one configuration.

    Args:
        paths: Folders of runs.
        form: A page, Markdown or JSON.
        path: Where it goes; default: ``comparison.<form>`` in the folder that all runs share.

    Returns:
        Path of the file.

    Raises:
        SettingError: Fewer than two of the runs can be compared; with a line for each that cannot, and why.
    """
    return write_compared(compared(paths), form, path)


def write_compared(found: Compared, form: Format = "html", path: Path | None = None) -> Path:
    """Write a comparison that was made before.

    Args:
        found: The comparison.
        form: A page, Markdown or JSON.
        path: Where it goes; default: ``comparison.<form>`` in the folder that all runs share.

    Returns:
        Path of the file.
    """
    where = path or _home(found) / f"comparison.{form}"
    return write_compared_page(found, where) if form == "html" else write_compared_text(found, where, form)


def _home(found: Compared) -> Path:
    """The folder that all runs share; where nothing can be written there, the working directory."""
    parents = [run.folder.path.parent for side in found.sides for run in side.runs]
    shared = Path(os.path.commonpath(parents))
    return shared if os.access(shared, os.W_OK) and shared != Path(shared.anchor) else Path.cwd()
