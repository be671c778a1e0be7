"""What a sweep says, in sentences: what was tried, what to use, and what the noise leaves open."""

import math
from collections.abc import Mapping, Sequence

from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import Metric
from amidkd.report.sweep.noise import Standing
from amidkd.report.sweep.record import Sweep, Trial, is_number, key_text, metric_called, value_text
from amidkd.report.words import count, duration

__all__ = ["advice_of", "effort_of", "noise_notes", "params_text", "sentence_of_sweep", "values_alike"]


def sentence_of_sweep(sweep: Sweep, standings: Sequence[Standing]) -> str:
    """What was tried and what to use.

    Args:
        sweep: The sweep.
        standings: The trials beside the best one, by objective; empty where none is complete.
    """
    return f"{_tried(sweep)} {advice_of(sweep, standings)}"


def _tried(sweep: Sweep) -> str:
    keys = " × ".join(key_text(key) for key in sweep.varied())
    states = [trial.state for trial in sweep.trials]
    done = len(sweep.complete())
    text = f"{done} {'setting' if done == 1 else 'settings'} of {keys} tried"
    if len(sweep.seeds) > 1:
        text += f", {len(sweep.seeds)} training seeds each"
    left = [f"{states.count(state)} {state}" for state in ("pruned", "failed", "running") if state in states]
    unusable = states.count("complete") - done
    if unusable:
        left.append(f"{unusable} without a finite result")
    return text + (f" ({', '.join(left)})." if left else ".")


def advice_of(sweep: Sweep, standings: Sequence[Standing]) -> str:
    """What to use, and which other settings do as well as far as anyone can tell.

    Args:
        sweep: The sweep.
        standings: The trials beside the best one, by objective.
    """
    if not standings:
        return "No trial is complete, so there is nothing to recommend yet."
    if len(standings) > 1:
        return _advice_of_several(sweep, standings)
    found = standings[0]
    metric = metric_called(found.objective.metric)
    setting, reached = params_text(sweep, found.best), _reached(found.best, metric)
    text = f"Use {setting}: {reached}."
    alike, all_of = found.alike(), len(found.comparisons)
    if not all_of:
        return text
    if found.over is None:
        return text + " Whether others do as well is not known: nothing says how large the noise is."
    noise = f"the noise over {found.over}"
    # What prompts alone support, another training seed may overturn.
    caveat = " Another training seed may change that: none was tried." if found.over == "prompts" else ""
    if not alike:
        others = "the other is" if all_of == 1 else f"all {all_of} others are"
        return f"{text} It stands out: {others} worse by more than {noise}.{caveat}"
    if len(alike) == all_of:
        return (
            f"By the numbers {setting} is best, with {reached}, but no setting can be told from another: every "
            f"difference is inside {noise}."
        )
    where = "; ".join(values_alike(sweep, found))
    others = "One other does" if len(alike) == 1 else f"{len(alike)} others do"
    return f"{text} {others} as well as far as {noise} lets one see: {where}.{caveat}"


def _advice_of_several(sweep: Sweep, standings: Sequence[Standing]) -> str:
    metrics = [metric_called(found.objective.metric) for found in standings]
    names = " and ".join(metric.label for metric in metrics)
    ends = [
        f"{params_text(sweep, f.best)} is best in {m.label} ({_value(f.best, m)})"
        for f, m in zip(standings, metrics, strict=True)
    ]
    if len({found.best.number for found in standings}) == 1:
        return f"Use {params_text(sweep, standings[0].best)}: the best in {names}."
    return f"{len(sweep.best)} of them are on the Pareto front of {names}: {'; '.join(ends)}."


def params_text(sweep: Sweep, trial: Trial) -> str:
    """A trial's setting in one line: ``α = −0.5, λ = 0.1``.

    Args:
        sweep: The sweep.
        trial: One of its trials.
    """
    return ", ".join(f"{key_text(key)} = {_short(trial.params[key])}" for key in sweep.varied() if key in trial.params)


def _short(value: object) -> str:
    """A value in a sentence: numbers drawn from a range have more digits than anyone reads."""
    return value_text(float(f"{value:.3g}") if isinstance(value, float) else value)


def _value(trial: Trial, metric: Metric) -> str:
    found = trial.estimate(metric.name)
    return "unknown" if found is None else show(found, metric).text


def _reached(trial: Trial, metric: Metric) -> str:
    found = trial.estimate(metric.name)
    assert found is not None
    shown = show(found, metric)
    errors = {error.over: error.text for error in shown.errors}
    over = next((kind for kind in ("training seeds", "prompts") if kind in errors), None)
    return f"{metric.label} {shown.text}" + (f" (± {errors[over]} over {over})" if over else "")


def values_alike(sweep: Sweep, found: Standing) -> list[str]:
    """For each key, the values of the trials that cannot be told from the best: ``α from −2 to 0``.

    Args:
        sweep: The sweep.
        found: The trials beside the best one.
    """
    trials = [found.best, *(sweep.trial(number) for number in found.alike())]
    texts = []
    for key in sweep.varied():
        values, tried = sweep.values_of(key, trials), sweep.values_of(key, sweep.complete())
        if len(tried) < 2 or not values:
            continue
        if "choices" in sweep.space[key] and len(values) == len(tried):
            texts.append(f"{key_text(key)} any of those tried")
        elif len(values) == 1:
            texts.append(f"{key_text(key)} {value_text(values[0])}")
        elif all(map(is_number, values)):
            texts.append(f"{key_text(key)} from {_short(values[0])} to {_short(values[-1])}")
        else:
            texts.append(f"{key_text(key)} {' or '.join(map(value_text, values))}")
    return texts


def noise_notes(sweep: Sweep, standings: Sequence[Standing]) -> list[str]:
    """What the verdicts rest on, and what they leave open.

    Args:
        sweep: The sweep.
        standings: The trials beside the best one, by objective.
    """
    lines = []
    for found in standings:
        if not found.comparisons:
            continue
        label = metric_called(found.objective.metric).label
        if found.over == "training seeds":
            how = f"{found.units} training seeds, the same for every trial; pooled over the better half of the trials"
        elif found.over == "prompts":
            how = f"{found.units} prompts, " + ("the same on both sides" if found.paired else "each side by itself")
        else:
            lines.append(f"{label}: no error is known, so no difference is judged.")
            continue
        lines.append(
            f"{label}: a difference from the best is called noise where chance alone makes one as large. The noise is "
            f"over {how}. The test is two-sided, at 5 % over all {len(found.comparisons)} comparisons (Bonferroni)."
        )
    if any(found.over == "prompts" for found in standings):
        lines.append(
            "One training seed a trial: another seed may move a result by more than other prompts would. "
            "sweep.seeds with three or more would tell."
        )
    if any(found.over == "training seeds" and found.units == 2 for found in standings):
        lines.append("Two training seeds measure their own spread poorly; three or more do better.")
    return lines


def effort_of(sweep: Sweep) -> list[tuple[str, str]]:
    """What the sweep took, and why it ended.

    Args:
        sweep: The sweep.
    """
    seconds, tokens, steps = (
        math.fsum(getattr(trial, name) for trial in sweep.trials) for name in ("seconds", "tokens", "steps")
    )
    facts = [("trials", str(len(sweep.trials)))]
    if sweep.facts.get("hours"):
        facts.append(("time, all sessions", duration(3600 * sweep.facts["hours"])))
    if seconds:
        facts.append(("training time of all trials", duration(seconds)))
    if tokens:
        facts.append(("supervised tokens", count(tokens)))
    if steps:
        facts.append(("steps", f"{steps:,.0f}"))
    limits = {name: value for name, value in (sweep.facts.get("budget") or {}).items() if value is not None}
    if limits:
        facts.append(("budget", ", ".join(f"{value:,} {name}" for name, value in limits.items())))
    for name in ("sampler", "pruner"):
        entry = sweep.facts.get(name)
        facts.append((name, str(entry["kind"] if isinstance(entry, Mapping) else entry)))
    for name, label in (("started", "started"), ("updated", "last change"), ("stopped", "stopped by")):
        if sweep.facts.get(name):
            facts.append((label, str(sweep.facts[name])))
    return facts
