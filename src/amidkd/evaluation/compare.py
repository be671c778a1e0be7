"""Whether one configuration is better than another, or only looks so: gaps, tests and a verdict in words.

Two questions are asked apart. Would the difference hold for other prompts? That is answered by pairing on the prompts,
with the training runs as they are. Would it hold if the models were trained again? That is answered with training runs
as units, and needs at least two of them on each side.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.metrics import METRICS, Metric
from amidkd.evaluation.paired import SeedGap, holm, seed_gap, sign_flip
from amidkd.evaluation.statistics import Estimate, Scores, clusters, exponential, stack

__all__ = ["Gap", "Runs", "Spread", "Verdict", "compare_with", "metric_of", "with_perplexities"]

_ROUNDING = 1e-6
"""Differences up to this, of a score or a token's part of it, are rounding."""

Finding = Literal["same", "noise", "prompts", "seeds differ", "few seeds", "holds", "unknown"]


def metric_of(name: str) -> Metric | None:
    """The entry of a metric, also where it is one of a suite's task.

    Args:
        name: ``nll``, or ``dolly.rouge_l_sampled``, whose label then begins with the task.
    """
    task, _, metric = name.rpartition(".")
    entry = METRICS.get(metric)
    return replace(entry, name=name, label=f"{task}: {entry.label}") if task and entry is not None else entry


@dataclass(frozen=True)
class Runs:
    """Training runs of one configuration, measured on the same prompts.

    Args:
        name: What tables call it.
        seeds: Training seed of each run.
        scores: Scores of each run by metric (``nll``, ``dolly.rouge_l_sampled``); the same prompts in the same order.
    """

    name: str
    seeds: tuple[int, ...]
    scores: tuple[Mapping[str, Scores], ...]

    @property
    def metrics(self) -> list[str]:
        """Metrics that every run has."""
        return [name for name in self.scores[0] if all(name in run for run in self.scores)]

    def pooled(self, metric: str) -> Scores:
        """Scores of all runs as one, with an axis of training seeds where there are several.

        Args:
            metric: One of :attr:`metrics`.
        """
        found = [run[metric] for run in self.scores]
        if len(found) == 1:
            return found[0]
        if len({(entry.sums.shape, entry.axes) for entry in found}) > 1:
            # Other numbers of sampling seeds: what they share is the prompts.
            found = [_balanced(entry) for entry in found]
        return stack(found, "training seeds")

    def values(self, metric: str) -> dict[int, float]:
        """The metric of each run, by training seed.

        Args:
            metric: One of :attr:`metrics`.
        """
        found = (run[metric] for run in self.scores)
        return {
            seed: float(entry.value_of(clusters(entry)[0].sum(axis=0)))
            for seed, entry in zip(self.seeds, found, strict=True)
        }

    def estimates(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        """Every metric with its standard errors and its interval over prompts.

        Args:
            bootstrap: How intervals are made.
        """
        return with_perplexities(
            bootstrap.estimates({name: self.pooled(name) for name in self.metrics if self._measured(name)})
        )

    def _measured(self, metric: str) -> bool:
        return any(run[metric].counts.any() for run in self.scores)

    def spread(self, metric: str) -> "Spread | None":
        """How far apart runs are because of their training, and how far because of the drawing of their answers.

        Args:
            metric: One of :attr:`metrics`.

        Returns:
            Both, or None for a single run.
        """
        if len(self.scores) < 2:
            return None
        means = np.array(list(self.values(metric).values()))
        draws = [_values_of_draws(run[metric]) for run in self.scores]
        if not all(len(values) > 1 for values in draws):
            return Spread(float(means.std(ddof=1)), None)
        within = float(np.mean([values.var(ddof=1) for values in draws]))
        noise = float(np.mean([values.var(ddof=1) / len(values) for values in draws]))
        return Spread(math.sqrt(max(0.0, float(means.var(ddof=1)) - noise)), math.sqrt(within))


def with_perplexities(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Estimates with the perplexity of every NLL of text among them, those of the suite's tasks too.

    Args:
        found: Estimates by metric.
    """
    whole = dict(found)
    for name, mean in found.items():
        task, dot, metric = name.rpartition(".")
        if metric in ("nll", "text_nll"):
            whole[f"{task}{dot}{metric.replace('nll', 'perplexity')}"] = exponential(mean)
    return whole


def _balanced(scores: Scores) -> Scores:
    """Means over repetitions: sides with other numbers of them are then alike."""
    axes = tuple(range(scores.counts.ndim - 1))
    return Scores(scores.sums.mean(axis=axes), scores.counts.mean(axis=axes), formula=scores.formula)


def _values_of_draws(scores: Scores) -> np.ndarray:
    if "sampling seeds" not in scores.axes:
        return np.empty(0)
    return scores.value_of(clusters(scores, "sampling seeds")[0])


@dataclass(frozen=True)
class Spread:
    """Standard deviations of a metric between runs of one configuration.

    Args:
        training: From one training seed to another, with what comes from drawing the answers taken out (one-way
            random effects: the variance of the runs' means less that of a mean of draws). 0 where drawing explains all.
        sampling: From one sampling seed to another within a run; None for a metric without several of them.
    """

    training: float
    sampling: float | None


@dataclass(frozen=True)
class Verdict:
    """What a difference amounts to.

    Args:
        finding: ``same`` (no prompt differs), ``noise``, ``prompts`` (holds over prompts; nothing is known about
            training seeds), ``seeds differ`` (holds over prompts, not over training seeds), ``few seeds`` (over
            training seeds only as long as it is the only test), ``holds`` (over both) or ``unknown`` (a value is not
            finite).
        head: The same in a word or two.
        rest: What to add to it.
    """

    finding: Finding
    head: str
    rest: str = ""

    @property
    def words(self) -> str:
        """The whole of it, as a reader sees it."""
        return f"{self.head} {self.rest}".strip()


@dataclass(frozen=True)
class Gap:
    """How a configuration differs from the baseline by one metric, on the same prompts.

    Args:
        metric: Its name.
        gap: The configuration's value minus the baseline's, with paired errors and interval over prompts.
        p: Two-sided p of the sign-flip test over prompts; NaN where it cannot be made.
        adjusted: The same after Holm's correction over all tests made together.
        prompts: Prompts that were measured.
        differing: Those of them where the two differ.
        seeds: The difference with training runs as units, or None where a side has one run.
        seeds_adjusted: Its p after Holm's correction; NaN without one.
        verdict: What it amounts to.
    """

    metric: str
    gap: Estimate
    p: float
    adjusted: float
    prompts: int
    differing: int
    seeds: SeedGap | None
    seeds_adjusted: float
    verdict: Verdict


def compare_with(
    baseline: Runs, others: Sequence[Runs], *, bootstrap: Bootstrap, skip: Mapping[str, Sequence[str]] | None = None
) -> list[list[Gap]]:
    """Compare configurations with a baseline by every metric that both have.

    Args:
        baseline: The one that the others are compared with.
        others: The others, on the same prompts.
        bootstrap: How intervals are made; its level is also that of the tests.
        skip: Metrics that cannot be compared, by name of the configuration.

    Returns:
        For each of the others its gaps, in the order of the table of metrics. p-values are corrected for all of them
        together.
    """
    found: list[tuple[int, Gap]] = []
    for place, other in enumerate(others):
        left_out = (skip or {}).get(other.name, ())
        for name in baseline.metrics:
            if name in other.metrics and name not in left_out:
                gap = _gap(name, baseline, other, bootstrap)
                if gap is not None:
                    found.append((place, gap))
    adjusted = holm([gap.p for _, gap in found])
    over_seeds = holm([gap.seeds.p if gap.seeds is not None else math.nan for _, gap in found])
    sides: list[list[Gap]] = [[] for _ in others]
    for (place, gap), p, seeds_p in zip(found, adjusted, over_seeds, strict=True):
        whole = replace(gap, adjusted=p, seeds_adjusted=seeds_p)
        sides[place].append(replace(whole, verdict=_verdict(whole, 1 - bootstrap.level)))
    return sides


def _gap(name: str, baseline: Runs, other: Runs, bootstrap: Bootstrap) -> Gap | None:
    first, second = other.pooled(name), baseline.pooled(name)
    if first.formula != second.formula or not (first.counts.any() and second.counts.any()):
        return None
    balanced = _balanced(first), _balanced(second)
    (ours, mine), (theirs, known) = map(clusters, balanced)
    # The same model differs in its last digits where rows were batched otherwise: float32 keeps seven a token.
    rounding = _ROUNDING * (balanced[0].counts + balanced[1].counts)[:, None]
    differing = ~np.isclose(ours, theirs, rtol=_ROUNDING, atol=rounding)
    gap = bootstrap.gap(first, second)
    kept = tuple(error for error in gap.errors if error.over != "training seeds")
    seeds = seed_gap(other.values(name), baseline.values(name), level=bootstrap.level)
    return Gap(
        name,
        replace(gap, errors=kept),
        sign_flip(*balanced),
        math.nan,
        int((mine | known).sum()),
        int(differing.any(axis=1).sum()),
        seeds,
        math.nan,
        Verdict("unknown", ""),
    )


def _verdict(gap: Gap, chance: float) -> Verdict:
    if not math.isfinite(gap.gap.value):
        return Verdict("unknown", "unknown", "(a value is not finite)")
    if gap.differing == 0:
        return Verdict("same", "the same", "on every prompt")
    seeds_hold = gap.seeds is not None and gap.seeds_adjusted <= chance
    if not gap.adjusted <= chance:
        why = "of so many tests" if gap.p <= chance else ""
        if seeds_hold:
            why = "of the prompts, though training seeds agree"
        return Verdict("noise", "inside the noise", why)
    direction = _direction(gap)
    if gap.seeds is None:
        return Verdict("prompts", direction, "over prompts; training seeds unknown")
    if seeds_hold:
        return Verdict("holds", direction, "over prompts and training seeds")
    if gap.seeds.p <= chance:
        return Verdict("few seeds", direction, "over prompts; training seeds agree, too few for so many tests")
    return Verdict("seeds differ", direction, "over prompts only, inside the noise of training seeds")


def _direction(gap: Gap) -> str:
    metric, higher = metric_of(gap.metric), gap.gap.value > 0
    if metric is None or metric.better is None:
        return "higher" if higher else "lower"
    return "better" if higher == (metric.better == "higher") else "worse"
