"""Run folders before work starts: nothing is written over, and only the same run goes on."""

from amidkd.config import RunConfig
from amidkd.errors import SettingError
from amidkd.record import RunFolder
from amidkd.training.fingerprint import check_same_run, run_settings

__all__ = ["WARM_START", "check_folder", "holds_a_run"]

WARM_START = "warm_start"
"""Folder of the warm start, in the run folder."""


def holds_a_run(folder: RunFolder) -> bool:
    """Whether anything was trained in a folder already."""
    for path in (folder.path, folder.path / WARM_START):
        part = RunFolder(path)
        logged = part.metrics_file.is_file() and part.metrics_file.stat().st_size > 0
        if logged or part.checkpoints() or part.student.is_dir():
            return True
    return False


def check_folder(config: RunConfig, folder: RunFolder, *, verb: str, processes: int) -> None:
    """Never write over a run; go on only with one of the same settings.

    Args:
        config: The run.
        folder: Where it goes.
        verb: What it does.
        processes: Processes of this run.

    Raises:
        SettingError: The folder holds a run, and this one does not go on with it; or its settings differ.
    """
    if not holds_a_run(folder):
        return
    record = folder.record()
    if not config.training.resume_from_checkpoint:
        state = "a finished run" if record.get("finished") else "an unfinished run"
        raise SettingError(
            f"output.folder: {folder.path} holds {state}. To go on with it: training.resume_from_checkpoint=true; "
            "for another run choose another output.folder"
        )
    now_known = run_settings(config, verb=verb, processes=processes)
    saved = {key: value for key, value in record.get("fingerprint", {}).items() if not key.startswith("contents.")}
    check_same_run(saved, now_known, where=str(folder.path))
