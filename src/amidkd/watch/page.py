"""The live page: the report's pieces, each made again when what it shows has changed."""

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, final

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from amidkd import __version__
from amidkd.report.curves import curves_of_run, note_on
from amidkd.report.figures import Figure, Series, line_figure
from amidkd.report.page import sample_view
from amidkd.watch.view import Follower, View

__all__ = ["LivePage"]

_CURVES_SHARE = 0.05
"""Drawing takes at most this part of a core's time while the run is under way, which may need the rest."""

_SENTENCE = "As it stands; new numbers come by themselves."


@cache
def _environment() -> Environment:
    return Environment(
        loader=ChoiceLoader([PackageLoader("amidkd.watch"), PackageLoader("amidkd.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@final
class LivePage:
    """The parts of the page with the version that each is of; several threads may ask.

    Args:
        follower: Looks at the run.
        tick: Seconds between two looks.
    """

    def __init__(self, follower: Follower, *, tick: float = 1.0) -> None:
        self._follower, self._tick = follower, tick
        self._changed = threading.Condition()
        self._looking = threading.Lock()
        self._parts: dict[str, tuple[int, str]] = {}
        self._version = 0
        self._readers = 0
        self._heading = self._title = ""
        self._drawn: tuple[Any, ...] | None = None
        self._draw_after = 0.0
        self._sampled: list[Mapping[str, Any]] = []
        self._samples = ""
        self._closed = False
        # Another server on the same port counts its versions anew.
        self._name = f"{time.time_ns():x}"

    def html(self) -> str:
        """The whole page as it stands."""
        self.look()
        with self._changed:
            parts = {name: html for name, (_, html) in self._parts.items()}
            seen = self._event_id(self._version)
            title = self._heading
        template = _environment().get_template("watch.html.j2")
        content = {"title": title, "sentence": _SENTENCE, "parts": parts, "version_seen": seen}
        return template.render(version=__version__, **content)

    def look(self) -> None:
        """Look at the run, and make what changed."""
        with self._looking:
            view = self._follower.look()
            made = self._made(view)
            with self._changed:
                version = self._version + 1
                fresh = {name: html for name, html in made.items() if self._parts.get(name, (0, None))[1] != html}
                if fresh:
                    self._version = version
                    self._parts |= {name: (version, html) for name, html in fresh.items()}
                self._heading, self._title = view.title, _title(view)
                self._changed.notify_all()

    def events(self, since: str) -> "Events":
        """What changes from now on, for one reader.

        Args:
            since: The last event that it has.
        """
        name, _, number = since.rpartition("-")
        return Events(self, int(number) if name == self._name and number.isdigit() else 0)

    def close(self) -> None:
        """Let every reader go."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def run(self) -> None:
        """Look again and again while there are readers, until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._readers)
                if self._closed:
                    return
            self.look()
            time.sleep(self._tick)

    def _event_id(self, version: int) -> str:
        return f"{self._name}-{version}"

    def _made(self, view: View) -> dict[str, str]:
        live: Any = _environment().get_template("live.html.j2").module
        parts = {
            "status": str(live.status(view)),
            "warnings": str(live.warnings(view)),
            "now": str(live.now(view)),
            "trials": str(live.trials(view)),
        }
        parts["curves"] = self._curves(view, live.curves)
        if view.samples != self._sampled:
            self._sampled = list(view.samples)
            self._samples = str(live.samples([sample_view(entry) for entry in view.samples]))
        parts["samples"] = self._samples
        parts["facts"] = str(live.facts(view))
        return parts

    def _curves(self, view: View, template: Callable[..., Any]) -> str:
        """The pictures; where new ones are not yet due, those that were drawn last."""
        trials = None if view.trials is None else {name: tuple(points) for name, points in view.trials.values.items()}
        shown = (len(view.lines), view.lines[-1] if view.lines else None, trials)
        last = self._parts.get("curves", (0, ""))[1]
        began = time.monotonic()
        # A run that is over needs no core any more.
        if shown == self._drawn or (view.state == "running" and began < self._draw_after):
            return last
        figures = curves_of_run(view.lines) if view.lines else _of_trials(trials or {})
        html = str(template(figures, note_on([view.lines])))
        self._drawn = shown
        self._draw_after = time.monotonic() + (time.monotonic() - began) / _CURVES_SHARE
        return html


@final
class Events:
    """What changes of a page, for one reader; use it in a ``with`` block.

    Args:
        page: The page.
        version: The last version that the reader has.
    """

    def __init__(self, page: LivePage, version: int) -> None:
        self._page, self._version = page, version

    def __enter__(self) -> "Events":
        with self._page._changed:
            self._page._readers += 1
            self._page._changed.notify_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._page._changed:
            self._page._readers -= 1

    def next(self, timeout: float) -> str | None:
        """The next event as server-sent events are written.

        Args:
            timeout: Seconds after which a comment comes, so that a reader that is gone is noticed.

        Returns:
            Lines, or None when the page is closed.
        """
        page = self._page
        with page._changed:
            page._changed.wait_for(lambda: page._closed or page._version > self._version, timeout)
            if page._closed:
                return None
            if page._version <= self._version:
                return ": nothing new\n\n"
            parts = {name: html for name, (version, html) in page._parts.items() if version > self._version}
            self._version = page._version
            data = json.dumps({"title": page._title, "parts": parts}, ensure_ascii=False)
            return f"id: {page._event_id(self._version)}\ndata: {data}\n\n"


def _title(view: View) -> str:
    open_bar = next((bar for bar in view.bars if bar.total and bar.done < bar.total), None)
    part = f"{100 * open_bar.share:.0f} %" if view.state == "running" and open_bar else view.state
    return f"{part} · {view.title}"


def _of_trials(values: dict[str, tuple[tuple[int, float], ...]]) -> list[Figure]:
    """Each objective by the number of the trial."""
    return [
        line_figure(
            f"trials-{place}",
            label,
            [Series(label, [number for number, _ in points], [value for _, value in points])],
            xlabel="trial",
            ylabel=label,
        )
        for place, (label, points) in enumerate(values.items())
        if any(math.isfinite(value) for _, value in points)
    ]
