"""A run in the terminal: a live table with sparklines; in a pipe, lines."""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from amidkd.watch.view import Bar, Follower, View

__all__ = ["lines_of", "show_in_terminal", "sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_BETWEEN_LINES = 10.0
_COLOURS = {"running": "green", "done": "green", "silent": "yellow", "stopped": "red", "waiting": "dim"}
_MOST_TRIALS = 12
_TOLD = {
    "loss": "Loss {}",
    "kl_teacher_student": "KL(teacher‖student) {}",
    "validation_loss": "validation loss {}",
    "tokens_per_second": "{} tokens/s",
    "peak_memory_mb": "{}",
}
"""What a line of plain text holds."""


def show_in_terminal(follower: Follower, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show a run until it is done, or until interrupted.

    On a terminal a run that stopped is waited for, since it may go on; in a pipe it is the end.

    Args:
        follower: Looks at the run.
        sleep: Waits between two looks.
    """
    from rich.console import Console

    console = Console()
    try:
        if console.is_terminal:
            _live(follower, console, sleep)
        else:
            _plain(follower, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True), sleep)
    except KeyboardInterrupt:
        console.print("No longer watching; the run goes on.")


def _live(follower: Follower, console: Any, sleep: Callable[[float], None]) -> None:
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            view = follower.look()
            live.update(_screen(view, console.width), refresh=True)
            if view.state == "done":
                live.vertical_overflow = "visible"
                return
            sleep(_SECONDS_BETWEEN_LOOKS)


def _plain(follower: Follower, say: Callable[[str], None], sleep: Callable[[float], None]) -> None:
    told, said, warned = 0.0, "", set()
    while True:
        view = follower.look()
        for text in view.warnings:
            if text not in warned:
                warned.add(text)
                say(f"warning: {text}")
        line = lines_of(view)
        over = view.state in ("done", "stopped")
        # What is new at once: another state; else now and then.
        if line != said and (over or not said or time.monotonic() - told >= _SECONDS_BETWEEN_LINES):
            told, said = time.monotonic(), line
            say(line)
        if over:
            return
        sleep(_SECONDS_BETWEEN_LOOKS)


def lines_of(view: View) -> str:
    """A run as plain text: its state, and while it runs its newest numbers; what to type next.

    Args:
        view: The run.
    """
    text = f"{view.title}: {view.sentence}"
    if view.state == "running" and view.readings:
        values = {reading.key: reading.value for reading in view.readings}
        text += " " + ", ".join(form.format(values[key]) for key, form in _TOLD.items() if key in values) + "."
    if view.state == "done" and view.about:
        text += f"\n{view.about}"
    return text + (f"\nNext: {view.command}" if view.command else "")


def _screen(view: View, width: int) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    pieces: list[Any] = [
        Text.assemble((view.title, "bold"), "  ", (view.state, _COLOURS[view.state])),
        Text(view.sentence),
    ]
    if view.about:
        pieces.append(Text(view.about, style="dim"))
    bars = Table.grid(padding=(0, 2))
    for bar in view.bars:
        bars.add_row(bar.name, _bar(bar), Text(bar.text))
    pieces.append(bars)
    # What must not be cut off on a low screen comes before the tables.
    if view.command:
        pieces.append(Text(f"Next: {view.command}"))
    pieces.extend(Text(f"Warning: {text}", style="yellow") for text in view.warnings)
    if view.readings:
        pieces.append(_readings(view, width))
    if view.trials is not None:
        pieces.append(_trials(view))
    return Group(*pieces)


def _bar(bar: Bar) -> Any:
    from rich.progress_bar import ProgressBar

    return ProgressBar(total=bar.total or 1, completed=bar.done if bar.total else 0, width=30)


def _readings(view: View, width: int) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("now", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("since the stage began", no_wrap=True)
    table.add_column("unit", style="dim", no_wrap=True)
    for reading in view.readings:
        line = sparkline(reading.history, max(10, min(48, width - 72)))
        table.add_row(reading.label, reading.value, line, reading.unit)
    return table


def _trials(view: View) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    assert view.trials is not None
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(view.trials.heads):
        table.add_column(head, justify="left" if place < 2 else "right")
    rows = view.trials.rows
    # The best and the newest: the screen has no room for hundreds.
    shown = [row for place, row in enumerate(rows) if place < _MOST_TRIALS or row[1].endswith("best")]
    for row in shown:
        table.add_row(*row)
    if len(shown) < len(rows):
        table.caption = f"{len(rows) - len(shown)} earlier trials are not shown"
    return table


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as a row of blocks, from the lowest to the highest of them.

    Args:
        values: Finite numbers, oldest first.
        width: Most characters; neighbours are averaged beyond.
    """
    if not values:
        return ""
    edges = [round(place * len(values) / min(width, len(values))) for place in range(min(width, len(values)) + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BLOCKS[0] * len(means)
    return "".join(_BLOCKS[min(7, int(8 * (mean - low) / (high - low)))] for mean in means)
