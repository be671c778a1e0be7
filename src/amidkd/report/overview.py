"""The first thing that a reader sees: a run's most telling numbers, each beside the teacher's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from amidkd.evaluation.display import show
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.statistics import Estimate
from amidkd.report.costs import parameters_of
from amidkd.report.results import estimates_of, strip, unit_of
from amidkd.report.words import count

__all__ = ["Card", "cards_of", "gap_in_words"]

_ANSWERS = (
    "exact_match_greedy",
    "numeric_match_greedy",
    "phoneme_error_rate_greedy",
    "exact_match_sampled",
    "rouge_l_sampled",
    "bleu_greedy",
    "chrf_greedy",
)
_OTHERS = ("nll", "kl_teacher_student", "teacher_nll_of_samples", "acceptance")
_MOST_ANSWERS = 2


@dataclass(frozen=True)
class Card:
    """One number of the overview.

    Args:
        label: What it is.
        value: The student's.
        detail: How the teacher's compares.
        picture: Both on one line, or None.
        meaning: What the number says.
    """

    label: str
    value: str
    detail: str
    picture: Markup | None
    meaning: str


def cards_of(record: Mapping[str, Any]) -> list[Card]:
    """The numbers that say most about a run; none that its record does not hold.

    Args:
        record: ``record.json``.
    """
    cards = []
    student, teacher = (parameters_of(record, name) for name in ("student", "teacher"))
    if student:
        detail = f"the teacher has {teacher / student:.1f} times as many" if teacher else ""
        cards.append(Card("Parameters", count(student), detail, None, "Size of the student."))
    evaluation = record.get("results", {}).get("evaluation")
    if not evaluation:
        return cards
    sides = {side: estimates_of(evaluation, side) for side in ("student", "teacher", "difference")}
    found = sides["student"]
    # A model that answers nothing exactly says nothing by it.
    answers = [name for name in _ANSWERS if name in found and found[name].value != 0][:_MOST_ANSWERS]
    shown = [*answers, *(name for name in _OTHERS if name in found)]
    others = (sides["teacher"], sides["difference"])
    return cards + [_card(METRICS[name], found[name], *(side.get(name) for side in others)) for name in shown]


def _card(metric: Metric, student: Estimate, teacher: Estimate | None, gap: Estimate | None) -> Card:
    detail = f"teacher {show(teacher, metric).text}" if teacher is not None else unit_of(metric)
    words = gap_in_words(metric, gap)
    return Card(
        metric.label,
        show(student, metric).text,
        f"{detail}; {words}" if words else detail,
        strip(metric, student, teacher),
        metric.meaning,
    )


def gap_in_words(metric: Metric, gap: Estimate | None) -> str:
    """Whether a difference is more than its noise over prompts: by its interval, else by two standard errors.

    Args:
        metric: What differs.
        gap: Student − teacher, with its errors paired by prompt.
    """
    if gap is None or metric.better is None or not math.isfinite(gap.value):
        return ""
    error = gap.error("prompts")
    if gap.interval is not None:
        low, high = gap.interval.low, gap.interval.high
    elif error is not None:
        low, high = gap.value - 2 * error.value, gap.value + 2 * error.value
    else:
        return ""
    if low <= 0 <= high:
        return "the difference is inside the noise"
    return "better than the teacher" if (gap.value > 0) == (metric.better == "higher") else "worse than the teacher"
