"""The benchmark: every method against its peers, and a table of goals at the end.

    python benchmarks/run.py [--quick] [--sections ...] [--json FILE]

Two processes one after the other, one with the allocator as it comes and one with thresholds that keep large tensors;
on a GPU, one. Within each all methods of a group take turns, in a new random order each round.
"""

import argparse
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from goals import goals, print_goals
from machine import machine, machine_lines, versions, warm_heap
from sizes import FULL, GPU, QUICK, Sizes
from table import print_group, print_heading
from timing import Results, Row

SECTIONS = {
    "accuracy": "accuracy",
    "memory": "loss_memory",
    "loss": "loss",
    "linear": "linear",
    "step": "step",
    "generate": "generate",
    "on_policy": "on_policy",
}
"""Sections in their order, and the module of each."""

TIMED = ("loss", "linear", "step", "generate", "on_policy")
"""Those that the heap matters to."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated, of: " + ", ".join(SECTIONS))
    parser.add_argument("--heaps", default="default,warm", help="comma-separated, of: default, warm (CPU alone)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the scripts; says nothing about speed")
    parser.add_argument("--seed", type=int, default=0, help="of the numbers and of the order of the methods")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--child", nargs=2, metavar=("HEAP", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.sections = _chosen(parser, "--sections", options.sections, tuple(SECTIONS))
    options.heaps = _chosen(parser, "--heaps", options.heaps, ("default", "warm"))
    return options


def _chosen(parser: argparse.ArgumentParser, flag: str, text: str, known: tuple[str, ...]) -> list[str]:
    chosen = text.split(",")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"{flag}: unknown {', '.join(unknown)}; choose from {', '.join(known)}")
    return [name for name in known if name in chosen]


def child(options: argparse.Namespace) -> None:
    """Measure some sections in this process, print them, and leave the rows in a file."""
    heap, file = options.child
    refused = warm_heap() if heap == "warm" else ""
    if refused:
        print(f"\nwarm heap: not available: {refused}")
        Path(file).write_text(json.dumps({"heap": heap, "rows": []}))
        return
    import torch
    from context import Context
    from peers import own_backends

    heap = "cuda" if torch.cuda.is_available() else heap
    found = machine(quick=options.quick)
    print(machine_lines(found, heap), flush=True)
    sizes = QUICK if options.quick else GPU if heap == "cuda" else FULL
    context = Context(sizes=sizes, heap=heap, quick=options.quick, seed=options.seed)
    own = own_backends(context.device)
    unable = "".join(f"; {item.name}: {item.why}" for item in own.missing)
    print(f"  backends of amidkd: {', '.join(own.names)} (auto: {own.auto}){unable}", flush=True)
    rows: list[Row] = []
    for section in options.sections:
        print_heading(section, heap, _sizes_in_words(section, sizes))
        for group, yardstick, part in importlib.import_module(SECTIONS[section]).run(context):
            print_group(group, yardstick, part)
            rows += part
    record = {"heap": heap, "machine": found, "auto": own.auto, "sizes": dataclasses.asdict(sizes)}
    Path(file).write_text(json.dumps(record | {"rows": [dataclasses.asdict(row) for row in rows]}))


def _sizes_in_words(section: str, sizes: Sizes) -> str:
    vocabulary = f"V = {sizes.vocabulary}"
    return {
        "accuracy": f"N = {sizes.accuracy_tokens}, {vocabulary}",
        "memory": f"{vocabulary}, H = {sizes.student_width} and {2 * sizes.student_width}",
        "loss": f"N = {sizes.tokens}, {vocabulary}",
        "linear": f"N = {sizes.linear_tokens}, {vocabulary}, H = {sizes.student_width} and {sizes.teacher_width}; "
        "GKD's Jensen–Shannon, and AMiD where α is named",
        "step": f"{sizes.batch} × {sizes.length} tokens, {sizes.prompt} of each a prompt, {vocabulary}, "
        f"{sizes.step_layers} layers, H = {sizes.step_width} and {2 * sizes.step_width}",
        "generate": f"{sizes.written} prompts of {sizes.prompt // 2} to {sizes.prompt} tokens at {vocabulary}, "
        f"{sizes.real_written} of about {sizes.prompt // 2} at V = 512; {sizes.answer} tokens each",
        "on_policy": f"{sizes.accumulation} × {sizes.passes} prompts a step at {vocabulary}, {sizes.accumulation} × "
        f"{sizes.real_passes} at V = 512; {sizes.answer} tokens each; GKD's Jensen–Shannon unless α is named",
    }[section]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the children found, heap by heap."""
    found: list[dict[str, Any]] = []
    for heap in options.heaps:
        # Sections that do not depend on the heap run once, first.
        sections = [name for name in options.sections if name in TIMED or not found]
        if not sections:
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.json"
            command = [sys.executable, __file__, "--sections", ",".join(sections), "--seed", str(options.seed)]
            command += ["--child", heap, str(file), *(["--quick"] if options.quick else [])]
            # Nothing is looked up on a hub: every model here is made from its configuration.
            subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
            found.append(json.loads(file.read_text()))
        if found[-1]["heap"] == "cuda":
            break
        print()
    return found


def main() -> None:
    options = arguments()
    if options.child:
        child(options)
        return
    start = time.perf_counter()
    parts = measure(options)
    results = Results([Row(**row) for part in parts for row in part["rows"]])
    remark = "; --quick: the bounds are meant for the full sizes" if options.quick else ""
    cuda = parts[0]["heap"] == "cuda"
    if not cuda and (threads := parts[0]["machine"]["threads"]) != 2:
        remark += f"; {threads} threads: the bounds are meant for 2"
    judged = goals(results, own=parts[0]["auto"], cuda=cuda)
    print_goals(judged, remark=remark)
    seconds = time.perf_counter() - start
    print(f"  {seconds:.0f} s in all", flush=True)
    if options.json:
        record = {
            "command": " ".join(["python", *sys.argv]),
            "versions": versions(),
            "seconds": seconds,
            "parts": [{name: value for name, value in part.items() if name != "rows"} for part in parts],
            "goals": [goal.record() for goal in judged],
            "rows": [row.record() for row in results.rows],
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
