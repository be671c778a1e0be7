"""Folders of evaluated runs made by hand: scores that are known, over the same hard and easy prompts."""

from pathlib import Path

import numpy as np

from amidkd.data import Row
from amidkd.evaluation import ModelResult, to_record, write_scores
from amidkd.evaluation.held_out import HeldOut
from amidkd.evaluation.statistics import Scores
from amidkd.record import RunFolder, write_json, write_json_lines

PROMPTS = 80
HARD = np.random.default_rng(1).normal(1.0, 0.5, size=PROMPTS)


def result(shift: float, seed: int, *, first: int = 0, tokens: int = 4, teacher: float = 0.0) -> ModelResult:
    """Scores over prompts ``first`` and after; the teacher's distance is ``teacher`` further."""
    draw = np.random.default_rng(seed)
    rows = [Row(n, f"rows.jsonl, line {n}", prompt=f"prompt {first + n}", completion="a") for n in range(PROMPTS)]
    held_out = HeldOut(rows, [(1,)] * PROMPTS, [None] * PROMPTS, [("a",)] * PROMPTS)
    counts = np.full(PROMPTS, float(tokens))
    nll = HARD + shift + 0.1 * draw.normal(size=PROMPTS)
    right = (draw.random((2, PROMPTS)) < 0.5).astype(float)
    scores = {
        "nll": Scores(nll * counts, counts),
        "kl_teacher_student": Scores((nll + teacher) * counts, counts),
        "exact_match_sampled": Scores(right, np.ones((2, PROMPTS)), ("sampling seeds", "prompts")),
    }
    return ModelResult(held_out, scores, None, (), ())


def make(
    folder: Path, shift: float, seed: int = 0, *, alpha: float = -0.5, training_seed: int = 1, **how: float
) -> Path:
    """The folder of a run that was evaluated."""
    student = result(shift, seed, **how)
    teacher = result(-0.3, 99, **{**how, "tokens": how.get("tokens", 4)})
    teacher = ModelResult(teacher.held_out, {**teacher.scores, "nll": _moved(teacher.scores["nll"], how)}, None, (), ())
    run = RunFolder(folder)
    config = {"objective": {"alpha": alpha}, "training": {"seed": training_seed}, "output": {"folder": str(folder)}}
    entry = {
        "data": {"file": "valid.jsonl", "rows": PROMPTS},
        "settings": {"temperature": 1.0, "sampling_seeds": [1, 2], "bootstrap": 300, "confidence": 0.95},
        **to_record(student, teacher),
    }
    write_json(run.record_file, {"verb": "distill", "config": config, "results": {"evaluation": entry}})
    samples = [{"prompt": "prompt 1", "references": ["a"], "answers": {"student, greedy": f"from {folder.name}"}}]
    write_json_lines(run.samples_file, samples)
    write_scores(run.scores_file, {"": (student, teacher)})
    return folder


def _moved(scores: Scores, how: dict) -> Scores:
    return Scores(scores.sums + how.get("teacher", 0.0) * scores.counts, scores.counts)
