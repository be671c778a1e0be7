"""Bytes of a token: of the formats, and of the files that ``amidkd cache`` really writes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from teachers_world import SHARED

from amidkd.teachers.cached import Layout, read_manifest

__all__ = ["amidkd", "files", "formats", "run_file"]

MODELS = {"stories": (512, 64), "pronunciation": (100, 224), "V = 32,000, H = 2,048": (32_000, 2_048)}
MODELS["V = 151,936, H = 3,584"] = (151_936, 3_584)
"""Vocabulary and hidden size: the measured pairs, and two of usual sizes."""

CACHES: tuple[dict[str, Any], ...] = ({"top_k": 8}, {"top_k": 64}, {"format": "hidden"})


def run_file(name: str, folder: Path) -> dict[str, Any]:
    """A run on one of the pairs, without its teacher's kind."""
    data: dict[str, Any] = {"train": str(SHARED / "data" / "tinystories_dev.jsonl"), "max_length": 512}
    teacher, student = "stories260K-hf", {"kind": "depth_pruned", "layers": 3}
    data["validation_rows"] = 100
    if name == "pronunciation":
        data = {"train": str(SHARED / "data" / "g2p_cmudict_train.jsonl"), "max_length": 64, "max_rows": 20_000}
        data |= {"prompt_template": "<s>{prompt}<sep>", "validation_rows": 1_000}
        teacher, student = "g2p-teacher", {"model": str(SHARED / "models" / "g2p-st64_ce")}
    return {
        "student": student,
        "teacher": {"model": str(SHARED / "models" / teacher)},
        "data": data,
        "objective": {"divergence": "kl", "between": "teacher||assistant", "alpha": -0.5, "lam": 0.1},
        "output": str(folder),
    }


def amidkd(verb: str, tree: dict[str, Any]) -> float:
    """Run one verb in a process of one thread.

    Returns:
        Seconds that it took.

    Raises:
        RuntimeError: It failed.
    """
    folder = Path(tree["output"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "asked.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True))
    start = time.perf_counter()
    command = [sys.executable, "-m", "amidkd", verb, str(file)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def formats() -> list[dict[str, Any]]:
    """Bytes of a token as the layouts give them; beside them the whole distribution in float16."""
    rows = []
    for name, (vocab_size, width) in MODELS.items():
        row: dict[str, Any] = {"kind": "format", "model": name, "whole distribution, float16": 2 * vocab_size}
        for k in (8, 16, 32, 64, 128, 256, 512):
            if k <= vocab_size:
                row[f"top_k, k = {k}"] = Layout("top_k", vocab_size, top_k=k).token_bytes
        rows.append(row | {"hidden": Layout("hidden", vocab_size, width=width).token_bytes})
    return rows


def files(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    """Bytes of a token of whole caches on disk, all files counted."""
    rows = []
    for name in names:
        for settings in CACHES:
            label = "hidden" if "format" in settings else f"top_k, k = {settings['top_k']}"
            output = folder / f"cache-{name}-{'-'.join(str(value) for value in settings.values())}"
            tree = run_file(name, output)
            tree["teacher"] |= {"kind": "cached", **settings}
            seconds = amidkd("cache", tree)
            cache = output / "teacher-cache"
            manifest = read_manifest(cache)
            sizes = {path.name: path.stat().st_size for path in sorted(cache.rglob("*")) if path.is_file()}
            shards = sum(size for file, size in sizes.items() if file.endswith(".parquet"))
            rows.append(
                {
                    "kind": "file",
                    "model": name,
                    "format": label,
                    "rows": manifest.rows,
                    "tokens": manifest.tokens,
                    "layout_bytes": manifest.layout.token_bytes,
                    "parquet_bytes": shards / manifest.tokens,
                    "other_files_bytes": sum(sizes.values()) - shards,
                    "seconds": seconds,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows
