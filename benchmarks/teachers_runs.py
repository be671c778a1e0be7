"""Distillation from the same teacher live, cached and served: curves, seconds, CPU seconds, and what waiting was left.

All kinds take turns, in a new random order each round; the trainer has one core, a server another.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from teachers_bytes import amidkd, run_file

__all__ = ["KINDS", "Kind", "by_kind", "distilled"]

LOGGED = 3
"""Steps between two lines of metrics."""

DELAY = 0.2


@dataclass(frozen=True)
class Kind:
    """A way to have the teacher.

    Args:
        name: What tables call it.
        teacher: What the run file's ``teacher`` has beside the model.
        on_demand: Do not ask ahead.
        delay: Seconds that each request takes longer.
    """

    name: str
    teacher: dict[str, Any] = field(default_factory=dict)
    on_demand: bool = False
    delay: float = 0.0

    @property
    def served(self) -> bool:
        return self.teacher.get("kind") == "served"


SERVED: dict[str, Any] = {"kind": "served", "format": "top_k", "top_k": 64}

KINDS = (
    Kind("live"),
    Kind("cached, top_k 64", {"kind": "cached", "format": "top_k", "top_k": 64}),
    Kind("cached, hidden", {"kind": "cached", "format": "hidden"}),
    Kind("served, top_k 64", SERVED),
    Kind("served, top_k 64, on demand", SERVED, on_demand=True),
    Kind("served, hidden", SERVED | {"format": "hidden"}),
    Kind(f"served, top_k 64, {DELAY:g} s away", SERVED, delay=DELAY),
    Kind(f"served, top_k 64, {DELAY:g} s away, on demand", SERVED, on_demand=True, delay=DELAY),
)

TRAINING = {
    "stories": {"max_steps": 30, "per_device_train_batch_size": 16, "learning_rate": 1e-3},
    "pronunciation": {"max_steps": 24, "per_device_train_batch_size": 256, "learning_rate": 1e-3},
}


def distilled(folder: Path, names: list[str], rounds: int = 3) -> list[dict[str, Any]]:
    """A row for each kind, pair and round.

    Args:
        folder: Where runs and caches are.
        names: Pairs.
        rounds: How often each kind runs.
    """
    rows = []
    for name in names:
        tree = _prepared(name, folder)
        with _server(tree["teacher"]["model"], folder / f"serve-{name}.log") as url:
            order = random.Random(0)
            for turn in range(rounds):
                # Distance is the same matter on either pair.
                kinds = [kind for kind in KINDS if not kind.delay or name == "stories"]
                order.shuffle(kinds)
                for kind in kinds:
                    row = _run(name, kind, tree, folder, url)
                    rows.append({"world": name, "kind": kind.name, "round": turn, **row})
                    brief = {key: value for key, value in rows[-1].items() if key != "curve"}
                    print(json.dumps(brief), file=sys.stderr, flush=True)
    return rows


def _prepared(name: str, folder: Path) -> dict[str, Any]:
    """The run file of all kinds, once a first student was warmed up and the caches are written."""
    tree = run_file(name, folder / f"warm-{name}")
    tree["training"] = {**TRAINING[name], "logging_steps": LOGGED, "save_steps": 10_000}
    tree["evaluation"] = {"max_rows": 16}
    if name == "stories":
        if not (folder / "warm-stories" / "student").is_dir():
            amidkd("sft", tree | {"training": tree["training"] | {"max_steps": 60}})
        tree["student"] = {"model": str(folder / "warm-stories" / "student")}
    for kind in KINDS:
        if kind.teacher.get("kind") == "cached" and not (_cache(name, kind, folder) / "manifest.json").is_file():
            made = tree | {"output": str(_cache(name, kind, folder).parent)}
            amidkd("cache", made | {"teacher": tree["teacher"] | kind.teacher})
    return tree


def _cache(name: str, kind: Kind, folder: Path) -> Path:
    return folder / f"distill-cache-{name}-{kind.teacher['format']}" / "teacher-cache"


def _run(name: str, kind: Kind, tree: dict[str, Any], folder: Path, url: str) -> dict[str, Any]:
    output = folder / f"distill-{name}"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    teacher = tree["teacher"] | kind.teacher
    if kind.served:
        teacher = kind.teacher | {"url": url}
    if kind.teacher.get("kind") == "cached":
        teacher["folder"] = str(_cache(name, kind, folder))
    file = output / "asked.yaml"
    file.write_text(yaml.safe_dump(tree | {"teacher": teacher, "output": str(output)}, allow_unicode=True))
    command = [
        sys.executable,
        str(Path(__file__).with_name("teachers_child.py")),
        str(file),
        str(output / "asked.json"),
    ]
    command += ["--on-demand"] * kind.on_demand + ["--delay", str(kind.delay)]
    start = time.perf_counter()
    with (output / "log").open("w") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_one_thread())
        os.sched_setaffinity(child.pid, {0})
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{(output / 'log').read_text()[-2000:]}")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line and "seconds" in line]
    pauses = [b["seconds"] - a["seconds"] for a, b in pairwise(steps)]
    asked = json.loads((output / "asked.json").read_text()) if kind.served else {}
    return {
        "curve": [[line["step"], line["loss"]] for line in steps],
        "step_seconds": statistics.median(pauses) / LOGGED,
        "wall_seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "steps": steps[-1]["step"],
        **asked,
    }


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


@contextmanager
def _server(model: str, log: Path) -> Iterator[str]:
    """`amidkd serve` on a free port of loopback, on the second core."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "amidkd", "serve", model, f"serve.port={port}"]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=_one_thread())
    os.sched_setaffinity(server.pid, {max(os.sched_getaffinity(0))})
    try:
        _wait_for(port, server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(port: int, server: Any, log: Path) -> None:
    import urllib.error
    import urllib.request

    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"amidkd serve ended\n{log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"amidkd serve did not come up\n{log.read_text()[-2000:]}")


def by_kind(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each pair and kind: medians over the rounds; ratios are taken within a round."""
    live = {(row["world"], row["round"]): row for row in rows if row["kind"] == "live"}
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["world"], row["kind"]), []).append(row)
    found = []
    for (world, kind), members in groups.items():
        ratios = [row["step_seconds"] / live[world, row["round"]]["step_seconds"] for row in members]
        reference = live[world, members[0]["round"]]["curve"]
        pairs = list(zip(members[0]["curve"], reference, strict=True))
        made: dict[str, Any] = {
            "world": world,
            "kind": kind,
            "step_seconds": statistics.median(row["step_seconds"] for row in members),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "cpu_seconds": statistics.median(row["cpu_seconds"] for row in members),
            "largest_difference": max(abs(mine[1] - theirs[1]) for mine, theirs in pairs),
            "largest_relative_difference": max(abs(mine[1] / theirs[1] - 1) for mine, theirs in pairs),
            "last_loss": members[0]["curve"][-1][1],
            "waited": None,
        }
        if "waited" in members[0]:
            made["waited"] = statistics.median(row["waited"] / row["steps"] for row in members)
            made["server"] = statistics.median(row["server"] / row["steps"] for row in members)
            made["hidden_part"] = 1 - made["waited"] / made["server"]
        found.append(made)
    return found
