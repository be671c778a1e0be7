"""``amidkd watch``: which follower a folder needs, and who shows it."""

from pathlib import Path
from typing import final

from amidkd.config import load
from amidkd.errors import SettingError
from amidkd.report.sweep import is_sweep
from amidkd.watch.runs import RunFollower, read_config
from amidkd.watch.sweeps import SweepFollower
from amidkd.watch.view import Follower, View

__all__ = ["follow", "watch"]


def watch(path: Path, *, terminal: bool, port: int) -> None:
    """Show a run or a sweep as it goes on, until interrupted.

    Args:
        path: Its folder, which need not be there yet; or its run file.
        terminal: Show it in the terminal, which ends with the run; else on a page on loopback.
        port: Of the page; 0 for any free one.

    Raises:
        SettingError: A run file that cannot be used, a file that is none, or a port that cannot be had.
    """
    follower = follow(path)
    if terminal:
        from amidkd.watch.terminal import show_in_terminal

        show_in_terminal(follower)
        return
    from amidkd.watch.server import serve_page

    serve_page(follower, port=port, ready=lambda url: _say(url, follower.look().state == "waiting"))


def _say(url: str, waiting: bool) -> None:
    from rich.console import Console

    console = Console()
    console.print(f"Watching at {url}", highlight=False, soft_wrap=True)
    if waiting:
        console.print("Nothing is there yet: waiting for it to begin. Is the folder spelled right?", highlight=False)
    console.print("Ctrl-C ends it; the run goes on.", highlight=False)


def follow(path: Path) -> Follower:
    """What looks at a folder.

    Args:
        path: The folder of a run or a sweep, which need not be there yet; or a run file.

    Raises:
        SettingError: A run file that cannot be used, or a file that is none.
    """
    if path.is_file():
        if path.suffix not in (".yaml", ".yml"):
            raise SettingError(f"{path} is a file; give the folder of a run or a sweep, or its run file")
        path = Path(load(path).output.folder)
    return _AnyFollower(path.resolve())


@final
class _AnyFollower:
    """A sweep where there are signs of one, else a run; settled once something is recorded."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._follower: Follower = RunFollower(path)
        self._settled = False

    def look(self) -> View:
        """The folder as it stands."""
        if not self._settled:
            config, _ = read_config(self._path)
            if is_sweep(self._path) or (config is not None and config.sweep is not None):
                self._follower = SweepFollower(self._path)
                self._settled = True
        view = self._follower.look()
        self._settled = self._settled or view.state != "waiting"
        return view
