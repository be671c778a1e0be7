"""A sweep's folder made by hand: ``sweep.json`` with numbers that are known, and records of its runs."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from amidkd.record import write_json

ALPHAS = [-5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0]
LAMBDAS = [0.05, 0.1, 0.2, 0.3, 0.5]


def nll_at(alpha: float, lam: float) -> float:
    """A bowl with its lowest point at α = −1, λ = 0.2."""
    return 1.2 + 0.02 * (alpha + 1) ** 2 + 0.5 * (lam - 0.2) ** 2


def metrics_at(nll: float, alpha: float, errors: list[dict[str, Any]]) -> dict[str, Any]:
    """What an evaluation might have measured."""
    return {
        "nll": {"value": nll, "errors": errors},
        "teacher_nll_of_samples": {"value": 1.5 - 0.1 * alpha, "errors": errors},
        "coverage": {"value": 0.9 - 0.02 * alpha - 0.003 * alpha**2, "errors": errors},
        "exact_match_greedy": {"value": max(0.0, 0.6 - nll / 4), "errors": errors},
        "kl_teacher_student": {"value": nll - 1.0, "errors": errors},
    }


def trial(number: int, params: dict[str, Any], nll: float | None, **entries: Any) -> dict[str, Any]:
    """An entry of ``trials``: complete where it has an NLL."""
    alpha = params.get("objective.alpha", 0.0)
    errors = [{"over": "prompts", "stderr": 0.01, "n": 400}]
    done = nll is not None and np.isfinite(nll)
    return {
        "number": number,
        "state": "complete" if nll is not None else "failed",
        "params": params,
        "folder": f"trials/{number:04d}",
        "values": {"nll": nll} if done else {},
        "metrics": metrics_at(nll, alpha, errors) if done and nll is not None else {},
        "seconds": 12.5,
        "tokens": 20_000,
        "steps": 40,
        "error": None,
        "runs": [{"seed": 42, "folder": f"trials/{number:04d}/seed-42"}],
        **entries,
    }


def write_sweep(folder: Path, trials: list[dict[str, Any]], **entries: Any) -> Path:
    """Write ``sweep.json``; the best trial is the one with the lowest NLL."""
    done = [each for each in trials if each["values"]]
    write_json(
        folder / "sweep.json",
        {
            "name": folder.name,
            "space": {"objective.alpha": {"choices": ALPHAS}, "objective.lam": {"choices": LAMBDAS}},
            "objective": [{"metric": "nll", "direction": "minimize"}],
            "sampler": "grid",
            "pruner": "none",
            "seeds": [42],
            "trials": trials,
            "best": [min(done, key=lambda each: each["values"]["nll"])["number"]] if done else [],
            "stopped": None,
            "started": "2026-01-01T00:00:00+00:00",
            "updated": "2026-01-01T00:10:00+00:00",
            **entries,
        },
    )
    return folder


def grid_sweep(folder: Path, *, seeds: tuple[int, ...] = (1, 2, 3), noise: float = 0.01) -> Path:
    """α × λ with a few training seeds; two trials failed, one was pruned, one is running, one was never begun."""
    draws = np.random.default_rng(0)
    odd = {3: "failed", 17: "failed", 25: "pruned", 38: "running"}
    trials = []
    for number, (alpha, lam) in enumerate(itertools.product(ALPHAS, LAMBDAS)):
        if number == 39:
            continue
        params = {"objective.alpha": alpha, "objective.lam": lam}
        if number in odd:
            error = "LossError: the loss is not finite at step 12" if odd[number] == "failed" else None
            trials.append(trial(number, params, None, state=odd[number], error=error))
            continue
        by_seed = {seed: nll_at(alpha, lam) + noise * draws.standard_normal() for seed in seeds}
        trials.append(_of_seeds(folder, number, params, by_seed))
    return write_sweep(folder, trials, seeds=list(seeds))


def _of_seeds(folder: Path, number: int, params: dict[str, Any], by_seed: dict[int, float]) -> dict[str, Any]:
    values, path = np.array(list(by_seed.values())), f"trials/{number:04d}"
    errors = [{"over": "prompts", "stderr": 0.01, "n": 400}]
    if len(values) > 1:
        spread = float(values.std(ddof=1) / np.sqrt(len(values)))
        errors.append({"over": "training seeds", "stderr": spread, "n": len(values)})
    for seed, value in by_seed.items():
        entry = metrics_at(float(value), params["objective.alpha"], errors[:1])
        write_json(
            folder / path / f"seed-{seed}" / "record.json",
            {"results": {"evaluation": {"student": {"metrics": entry}}}},
        )
    mean = float(values.mean())
    metrics = metrics_at(mean, params["objective.alpha"], errors)
    runs = [{"seed": seed, "folder": f"{path}/seed-{seed}"} for seed in by_seed]
    return trial(number, params, mean, metrics=metrics, runs=runs)
