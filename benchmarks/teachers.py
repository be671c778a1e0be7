"""Stored and served teachers beside the same teacher in memory: error, bytes, samples at equal bytes, time.

    python benchmarks/teachers.py FOLDER [--sections error,samples,training,bytes,distill] [--json FILE] [--plot FILE]

FOLDER holds runs and caches. With ``--json`` the sections and pairs that ran replace theirs in FILE; the tables and the
plot show all that it holds. Not part of ``make bench``: most of it is about errors, not speed.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import machine, versions
from teachers_tables import show

KS = {"stories": [4, 8, 16, 32, 64], "pronunciation": [2, 4, 8, 16, 32]}
TRAINED_KS = {"stories": [4, 16], "pronunciation": [2, 4]}


def error(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    from teachers_error import errors
    from teachers_world import worlds

    return [row for world in worlds(names) for row in errors(world, 2048)]


def samples(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    from teachers_samples import batch_errors
    from teachers_world import worlds

    rows = []
    for world in worlds(names):
        rows += batch_errors(world, KS[world.name], pieces=16, rows=world.batch // 4 if world.batch < 64 else 128)
    return rows


def training(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    from teachers_training import trained
    from teachers_world import worlds

    return [row for world in worlds(names) for row in trained(world, TRAINED_KS[world.name], [1, 2, 3])]


def sizes(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    from teachers_bytes import files, formats

    return [*formats(), *files(folder, names)]


def distill(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    from teachers_runs import distilled

    return distilled(folder, names)


SECTIONS: dict[str, Callable[[Path, list[str]], list[dict[str, Any]]]] = {
    "error": error,
    "samples": samples,
    "training": training,
    "bytes": sizes,
    "distill": distill,
}


def _written(found: dict[str, Any]) -> str:
    """JSON with one row a line, numbers to six digits."""
    sections = []
    for name, section in found.items():
        rows = ",\n".join(json.dumps(_short(row), ensure_ascii=False) for row in section["rows"])
        contexts = json.dumps(section["contexts"], ensure_ascii=False)
        sections.append(f'{json.dumps(name)}: {{"contexts": {contexts}, "rows": [\n{rows}\n]}}')
    return "{" + ",\n".join(sections) + "}\n"


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _short(each) for name, each in value.items()}
    return [_short(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated, of: " + ", ".join(SECTIONS))
    parser.add_argument("--worlds", default="stories,pronunciation")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    chosen = [name for name in options.sections.split(",") if name]
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--sections: unknown {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    found = json.loads(options.json.read_text()) if options.json and options.json.is_file() else {}
    for name in chosen:
        worlds, before = options.worlds.split(","), found.get(name, {"contexts": {}, "rows": []})
        rows = SECTIONS[name](options.folder.resolve(), worlds)
        rows = [row for row in before["rows"] if row.get("world", worlds[0]) not in worlds] + rows
        context = {"command": " ".join(sys.argv), "machine": machine(quick=True), "versions": versions()}
        found[name] = {"contexts": before["contexts"] | {options.worlds: context}, "rows": rows}
        if options.json:
            options.json.write_text(_written(found))
    show({name: section["rows"] for name, section in found.items()})
    if options.plot:
        from teachers_plot import plot

        plot({name: section["rows"] for name, section in found.items()}, options.plot)


if __name__ == "__main__":
    main()
