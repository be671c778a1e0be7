"""A comparison in words: what a side is, and what its differences amount to."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amidkd.evaluation.compare import Gap, metric_of
from amidkd.evaluation.display import show
from amidkd.evaluation.row_sets import MAIN, TEXT
from amidkd.evaluation.statistics import Estimate
from amidkd.report.compare.shared import Compared, Side
from amidkd.report.words import number

__all__ = ["detail_of", "p_text", "seeds_text", "sentence_of_pair", "sentence_of_sides", "statistics_note", "title_of"]

_MOST_SETTINGS = 4


def title_of(found: Compared) -> str:
    """Heading of the comparison."""
    names = [side.name for side in found.sides]
    return f"{names[1]} against {names[0]}" if len(names) == 2 else f"{len(names)} configurations"


def detail_of(side: Side) -> str:
    """What tells a side from the others: its settings that differ, and its training seeds."""
    settings = [f"{key} {_value(value)}" for key, value in side.settings.items()]
    if len(settings) > _MOST_SETTINGS:
        left = len(settings) - _MOST_SETTINGS
        settings = [*settings[:_MOST_SETTINGS], f"{left} more settings" if left > 1 else "1 more setting"]
    seeds = ", ".join(str(run.seed) for run in side.runs)
    return "; ".join([*settings, f"training seed{'s' if len(side.runs) > 1 else ''} {seeds}"])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return number(value)
    text = str(value)
    return Path(text).name if "/" in text and "\n" not in text else text


def sentence_of_sides(found: Compared) -> str:
    """What was compared, in one sentence."""
    rows = _list(
        [
            f"{count:,} " + {MAIN: "prompts", TEXT: "texts"}.get(task, f"prompts of {task.replace('_', ' ')}")
            for task, count in found.prompts.items()
        ],
        most=9,
    )
    if len(found.sides) == 2:
        return f"{sentence_of_pair(found.baseline, found.sides[1])} Measured on {rows}."
    return f"{len(found.sides) - 1} configurations against {found.baseline.name}, measured on {rows}."


def sentence_of_pair(baseline: Side, side: Side) -> str:
    """How a side compares with the baseline, in one sentence: what holds, and what is inside the noise."""
    held = [gap for gap in side.gaps if gap.verdict.finding in ("holds", "prompts", "few seeds", "seeds differ")]
    noise = sum(gap.verdict.finding in ("noise", "same") for gap in side.gaps)
    parts = []
    for way in ("better", "worse", "higher", "lower"):
        found = [gap for gap in held if gap.verdict.head == way]
        if found:
            parts.append(f"{way} in {_list([_label(gap) for gap in found])}")
    tests = len(side.gaps)
    if not parts:
        if not tests:
            return f"{side.name} and {baseline.name} have no metric in common."
        return f"{side.name} against {baseline.name}: every difference is inside the noise ({tests} metrics)."
    text = f"{side.name} against {baseline.name}: {'; '.join(parts)}"
    if noise:
        text += f"; {noise} of {tests} metrics inside the noise"
    return text + _what_it_rests_on(held) + "."


def _what_it_rests_on(held: Sequence[Gap]) -> str:
    kinds = {gap.verdict.finding for gap in held}
    if kinds == {"prompts"}:
        return ". A side is a single training run, so this may not hold for another training seed"
    if kinds == {"holds"}:
        return ", over prompts and over training seeds"
    if kinds == {"few seeds"}:
        return ". Training seeds agree, but are too few for so many tests"
    told = {
        "holds": ("holds", "hold"),
        "few seeds": ("agrees, by too few seeds for so many tests", "agree, by too few seeds for so many tests"),
        "seeds differ": ("is inside the noise", "are inside the noise"),
        "prompts": ("is unknown", "are unknown"),
    }
    counts = {finding: sum(gap.verdict.finding == finding for gap in held) for finding in told}
    listed = (f"{n} {told[what][n > 1]}" for what, n in counts.items() if n)
    return f". Over training seeds, of these differences {', '.join(listed)}"


def _label(gap: Gap) -> str:
    metric = metric_of(gap.metric)
    return gap.metric if metric is None else metric.label


def _list(names: Sequence[str], most: int = 3) -> str:
    shown = list(names[:most])
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def p_text(p: float) -> str:
    """A p-value as text; a dash where there is no test."""
    if math.isnan(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1g}"


def seeds_text(gap: Gap) -> dict[str, str]:
    """The interval of a difference with training runs as units, and its p; a dash where one side has a single run."""
    metric = metric_of(gap.metric)
    if gap.seeds is None or metric is None:
        return {"interval": "–", "p": ""}
    found = show(Estimate(gap.seeds.value, interval=gap.seeds.interval), metric, sign=True)
    # Where all runs of a side are alike there is no test.
    p = "" if math.isnan(gap.seeds_adjusted) else p_text(gap.seeds_adjusted)
    return {"interval": found.interval, "p": p}


def statistics_note(found: Compared) -> list[str]:
    """How to read intervals and p-values of a comparison."""
    level = f"{100 * found.level:g} %"
    lines = [
        f"“a to b” is the {level} confidence interval over prompts (bootstrap, BCa), of a difference paired by prompt. "
        "p is that of a sign-flip test over prompts, after Holm’s correction over all tests of this comparison; a "
        f"difference with p above {1 - found.level:.2g} is called inside the noise.",
    ]
    if any(gap.seeds is not None for side in found.sides for gap in side.gaps):
        lines.append(
            "Over training seeds, a run is one draw: Student’s t on the runs’ values, paired by seed where both sides "
            "have the same seeds. It asks whether the difference would come again if the models were trained again."
        )
    if any(len(side.runs) == 1 for side in found.sides):
        lines.append(
            "A side with a single run says nothing about training seeds: train it again with another "
            "training.seed and compare the folders together."
        )
    return lines
