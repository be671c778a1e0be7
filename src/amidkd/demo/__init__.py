"""The built-in demonstration: a task made by rule, the packaged teacher, and the comparison of students."""

from pathlib import Path

from amidkd.record import RunFolder

__all__ = ["run_demo"]


def run_demo(folder: Path, *, quick: bool = False) -> RunFolder:
    """Distil the packaged teacher into small students by several methods, compare them, and write a report.

    Few labels, many prompts: a small part of the prompts keeps its label, and on the others the teacher's answer and
    its distributions are the only guide. A folder that holds finished runs of the same settings is gone on with.

    Args:
        folder: Where run folders, ``record.json`` and ``report.html`` go; made if absent.
        quick: A few steps on a few prompts, to see that everything works; the numbers then mean nothing.

    Returns:
        The folder of the comparison. Each run has a run folder of its own in it, such as ``amid-seed1``.

    Raises:
        SettingError: The folder holds runs of other settings.
    """
    from amidkd.demo.compare import compare
    from amidkd.demo.runs import FULL, QUICK

    return compare(Path(folder), QUICK if quick else FULL)
