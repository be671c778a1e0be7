"""One run in this process, with what asking a served teacher cost: a child of ``teachers_runs.py``.

python benchmarks/teachers_child.py RUN.yaml FILE [--on-demand] [--delay SECONDS]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amidkd.cli import main
from amidkd.teachers.served.client import ServedTeacher
from amidkd.teachers.served.http import TeacherClient


def measured(file: Path, *, on_demand: bool, delay: float) -> None:
    """Have every served teacher write its statistics to a file when it is closed.

    Args:
        file: Where to.
        on_demand: Do not ask ahead.
        delay: Seconds that each request takes longer, as to a server far away.
    """
    close, ask = ServedTeacher.close, TeacherClient.ask

    def closed(teacher: ServedTeacher) -> None:
        file.write_text(json.dumps(teacher.statistics()))
        close(teacher)

    def slower(client: TeacherClient, *words: Any, **named: Any) -> Any:
        time.sleep(delay)
        return ask(client, *words, **named)

    _replace(ServedTeacher, "close", closed)
    if on_demand:
        _replace(ServedTeacher, "expect", lambda teacher, batches: None)
    if delay:
        _replace(TeacherClient, "ask", slower)


def _replace(owner: type, name: str, function: Callable[..., Any]) -> None:
    setattr(owner, name, function)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("file", type=Path)
    parser.add_argument("--on-demand", action="store_true")
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    measured(options.file, on_demand=options.on_demand, delay=options.delay)
    code = main(["distill", options.run])
    os._exit(code) if code else None
