"""Which policy helps which objective: the pronunciation task, every pair, several seeds, side by side.

    python benchmarks/policies.py FOLDER [--seeds 1,2,3] [--workers 2] [--shared ../shared] [--json FILE]

About 45 runs of two to three minutes of one core each; what is finished in FOLDER is not run again. Not part of
``make bench``: it measures students, not speed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
OBJECTIVES = {
    "forward KL": {"divergence": "kl", "between": "teacher||student"},
    "AMiD α = −0.5, λ = 0.1": {"divergence": "kl", "between": "teacher||assistant", "alpha": -0.5, "lam": 0.1},
    "skew reverse KL, κ = 0.1": {"divergence": "kl", "between": "student||assistant", "alpha": -1, "lam": 0.9},
}
WRITING = {"generation": {"max_new_tokens": 32, "batch_size": 128}}
POLICIES = {
    "dataset": {"kind": "dataset"},
    "mixed": {"kind": "mixed", "on_policy_fraction": 0.5, **WRITING},
    "on_policy": {"kind": "on_policy", **WRITING},
    "adaptive": {"kind": "adaptive", "initial_threshold": 0.3, "tolerance": 0.0, "validation_steps": 30, **WRITING},
}
CONTRASTIVE = {"kind": "contrastive", "teacher_text": "data", **WRITING}
COLUMNS = {
    "exact_match_greedy": ("words right, greedy, %", 100, 1),
    "exact_match_sampled": ("sampled, %", 100, 1),
    "nll": ("NLL of real text", 1, 3),
    "teacher_nll_of_samples": ("teacher's NLL of its samples", 1, 2),
    "acceptance_on_samples": ("acceptance on its samples", 1, 3),
    "kl_student_teacher_on_samples": ("KL(student‖teacher) on its samples", 1, 3),
}


@dataclass(frozen=True)
class Job:
    """One run.

    Args:
        objective: Row of the table.
        policy: Row of the table.
        seed: Of the training.
        verb: ``distill`` or ``sft``.
        changes: Settings that differ from the others'.
    """

    objective: str
    policy: str
    seed: int
    verb: str
    changes: dict

    @property
    def name(self) -> str:
        return f"{self.policy}-{list(OBJECTIVES).index(self.objective) if self.objective in OBJECTIVES else 'own'}"

    def folder(self, root: Path) -> Path:
        return root / "runs" / f"{self.name}-seed{self.seed}"


def jobs(seeds: list[int]) -> Iterator[Job]:
    for seed in seeds:
        for policy, settings in POLICIES.items():
            for objective, terms in OBJECTIVES.items():
                yield Job(objective, policy, seed, "distill", {"policy": settings, "objective": terms})
        # Both answers to a prompt: half as many prompts make as many rows.
        half = {"policy": CONTRASTIVE, "training": {"per_device_train_batch_size": 64}}
        yield Job("its own two", "contrastive", seed, "distill", half)
        yield Job("cross-entropy", "sft", seed, "sft", {})


def settings(root: Path, shared: Path, seed: int) -> dict:
    return {
        "student": str(root / f"warm{seed}" / "student"),
        "teacher": str(shared / "models" / "g2p-teacher"),
        "data": {
            "train": str(root / "text.jsonl"),
            "validation": str(shared / "data" / "g2p_cmudict_valid.jsonl"),
            "prompt_template": "<s>{prompt}<sep>",
            "max_length": 64,
        },
        "training": {
            "learning_rate": 2e-3,
            "max_steps": 200,
            "per_device_train_batch_size": 128,
            "logging_steps": 10,
            "save_steps": 2000,
            "seed": seed,
        },
        "evaluation": {"batch_size": 512, "max_new_tokens": 32, "sampling_seeds": [10, 20]},
    }


def amidkd(verb: str, folder: Path, tree: dict) -> None:
    """Run one verb in a process of one thread, unless its record says that it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "asked.yaml"
    file.write_text(yaml.safe_dump({**tree, "output": str(folder)}, allow_unicode=True))
    command = [sys.executable, "-m", "amidkd", verb, str(file), "training.resume_from_checkpoint=true"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def text(root: Path, shared: Path) -> None:
    """5 % of the words with their label; on the others what the teacher answers."""
    if (root / "text.jsonl").is_file():
        return
    from amidkd.config import parse
    from amidkd.data import training_rows
    from amidkd.policies import read_answers

    data = {
        "train": str(shared / "data" / "g2p_cmudict_train.jsonl"),
        "prompt_template": "<s>{prompt}<sep>",
        "label_fraction": 0.05,
        "max_length": 64,
        "generation": {"max_new_tokens": 32, "batch_size": 512},
    }
    teacher = str(shared / "models" / "g2p-teacher")
    tree = {"student": teacher, "teacher": teacher, "data": data}
    amidkd("generate", root / "text", tree)
    answers = {answer.row: answer for answer in read_answers(root / "text" / "generated")}
    lines = []
    for row in training_rows(parse({**tree, "output": str(root)})):
        completion = row.completion
        if completion is None and answers[row.index].finished:
            completion = answers[row.index].completion
        if completion is not None:
            lines.append(json.dumps({"prompt": row.prompt, "completion": completion}) + "\n")
    (root / "text.jsonl").write_text("".join(lines))


def warm(root: Path, shared: Path, seed: int) -> None:
    """A student of random weights after one epoch of cross-entropy: where all runs of a seed start."""
    folder = root / f"warm{seed}"
    if (folder / "student").is_dir():
        return
    tree = settings(root, shared, seed)
    tree["student"] = {
        "kind": "from_scratch",
        "config": SHAPE,
        "tokenizer": str(shared / "models" / "g2p-teacher"),
    }
    del tree["teacher"]
    tree["training"] |= {
        "learning_rate": 4e-3,
        "max_steps": -1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 256,
    }
    amidkd("sft", folder, tree)


def run(root: Path, shared: Path, job: Job) -> None:
    folder = job.folder(root)
    tree = settings(root, shared, job.seed)
    for section, values in job.changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    if not values_of(folder):
        amidkd(job.verb, folder, tree)
        amidkd("eval", folder, tree)
    print(f"done: {folder.name}", file=sys.stderr, flush=True)


def values_of(folder: Path) -> dict[str, float]:
    """The student's metrics of a run, empty before it is evaluated."""
    record = folder / "record.json"
    found = json.loads(record.read_text()) if record.is_file() else {}
    metrics = found.get("results", {}).get("evaluation", {}).get("student", {}).get("metrics", {})
    return {name: metrics[name]["value"] for name in COLUMNS if name in metrics}


def table(root: Path, seeds: list[int]) -> list[dict]:
    """Mean and standard error over the seeds, and of the differences from ``dataset`` at equal seed."""
    found: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for job in jobs(seeds):
        values = values_of(job.folder(root))
        if values:
            found.setdefault((job.objective, job.policy), {})[job.seed] = values
    rows = []
    for (objective, policy), runs in found.items():
        base = found.get((objective, "dataset"), {})
        row: dict = {"objective": objective, "policy": policy, "seeds": sorted(runs)}
        for name in COLUMNS:
            row[name] = _mean([values[name] for values in runs.values()])
            both = [seed for seed in runs if seed in base]
            if policy != "dataset" and both:
                row[f"{name}, less dataset's"] = _mean([runs[seed][name] - base[seed][name] for seed in both])
        rows.append(row)
    return rows


def _mean(values: list[float]) -> list[float]:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return [statistics.mean(values), error]


def show(rows: list[dict]) -> None:
    print("| objective | policy | " + " | ".join(title for title, _, _ in COLUMNS.values()) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for suffix in ("", ", less dataset's"):
        for row in sorted(rows, key=lambda row: str(row["objective"])):
            if any(name + suffix not in row for name in COLUMNS):
                continue
            cells = []
            for name, (_, factor, digits) in COLUMNS.items():
                mean, error = (factor * value for value in row[name + suffix])
                sign = "+" if suffix else ""
                cells.append(f"{mean:{sign}.{digits}f} ± {error:.{digits}f}".replace("-", "−"))
            print(f"| {row['objective']} | {row['policy']}{suffix} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    root, shared, seeds = options.folder.resolve(), options.shared.resolve(), [int(n) for n in options.seeds.split(",")]
    root.mkdir(parents=True, exist_ok=True)
    text(root, shared)
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda seed: warm(root, shared, seed), seeds))
        list(pool.map(lambda job: run(root, shared, job), jobs(seeds)))
    rows = table(root, seeds)
    show(rows)
    if options.json:
        options.json.write_text(
            json.dumps({"command": " ".join(sys.argv), "rows": rows}, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
