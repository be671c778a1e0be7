"""The goals that the benchmark ends with: what was to be reached, what was, and whether that is enough."""

from collections.abc import Iterator
from dataclasses import dataclass

import names
from names import alpha_case, group
from table import ratio_text
from timing import Ratio, Results

__all__ = ["Goal", "goals", "print_goals"]


@dataclass(frozen=True)
class Goal:
    """One line of the table.

    Args:
        text: What is compared, and where.
        bound: The number to reach.
        at_least: Whether the value must not be below the bound; else not above it.
        value: What was measured; None: it was not.
        unit: Of bound and value; ``×`` for ratios.
    """

    text: str
    bound: float
    at_least: bool
    value: Ratio | None
    unit: str = "×"

    @property
    def verdict(self) -> str:
        """Pass or fail by the median, or that there is nothing to judge."""
        if self.value is None:
            return "not measured"
        met = self.value.median >= self.bound if self.at_least else self.value.median <= self.bound
        return "pass" if met else "fail"

    def record(self) -> dict:
        """What goes into the JSON file."""
        value = None if self.value is None else vars(self.value)
        bound = f"{'≥' if self.at_least else '≤'} {self.bound:g} {self.unit}"
        return {"goal": self.text, "bound": bound, "value": value, "verdict": self.verdict}


class _Measured:
    """Ratios by name, on one heap."""

    def __init__(self, results: Results, heap: str, own: str) -> None:
        self._results, self._heap, self._own = results, heap, own

    def figure(self, section: str, group: str, method: str = "", *, scale: float = 1.0) -> Ratio | None:
        """A row by itself."""
        row = self._results.find(section, self._heap, group, method or self._own)
        if row is None:
            return None
        return Ratio(scale * row.median, scale * min(row.rounds), scale * max(row.rounds))

    def gain(self, section: str, group: str, peer: str, own: str = "") -> Ratio | None:
        """How many times this package's method goes into the peer's."""
        return self._ratio(section, group, peer, own or self._own)

    def over(self, section: str, group: str, floor: str, own: str) -> Ratio | None:
        """How many times the floor goes into this package's method."""
        return self._ratio(section, group, own, floor)

    def _ratio(self, section: str, group: str, above: str, below: str) -> Ratio | None:
        first, second = (self._results.find(section, self._heap, group, method) for method in (above, below))
        return self._results.ratio(first, second)


def goals(results: Results, *, own: str, cuda: bool) -> list[Goal]:
    """All goals of this device.

    Args:
        results: Every row.
        own: The backend that ``backend="auto"`` takes here.
        cuda: Whether the rows are a GPU's.
    """
    return list(_gpu(results, own) if cuda else _cpu(results, own))


def _cpu(results: Results, own: str) -> Iterator[Goal]:
    warm, default = (_Measured(results, heap, own) for heap in ("warm", "default"))
    heaps = {"warm": warm, "default heap": default}
    textbook = {("float32", "warm"): 15, ("float32", "default heap"): 30}
    for dtype in ("float32", "bfloat16"):
        for heap, measured in heaps.items():
            for alpha in names.ALPHAS:
                value = measured.gain("loss", group(alpha_case(alpha), dtype), "textbook")
                text = f"loss + gradient given logits / textbook autograd, α = {alpha:g}, {dtype}, {heap}"
                yield Goal(text, textbook.get((dtype, heap), 12), True, value)
    for heap, measured in heaps.items():
        for alpha in names.ALPHAS:
            value = measured.gain("loss", group(alpha_case(alpha), "float32"), "textbook", "chunked")
            yield Goal(f"the same, torch path alone, α = {alpha:g}, float32, {heap}", 3, True, value)
    for dtype in ("float32", "bfloat16"):
        for heap, measured in heaps.items():
            value = measured.gain("loss", group("jsd", dtype), "TRL GKD")
            yield Goal(f"loss + gradient given logits / TRL GKD JSD, {dtype}, {heap}", 20, True, value)
    yield _memory_given_logits(default, "float32")
    for dtype in ("float32", "bfloat16"):
        for heap, measured in heaps.items():
            value = measured.over("linear", dtype, names.PRODUCTS, names.amid_linear(own))
            yield Goal(f"fused linear over its bare products, {dtype}, {heap}", 1.10, False, value)
    for peer, bounds in (("TRL chunked", (3.5, 10)), ("Liger", (2.5, 6)), ("Liger compiled", (2.5, 6))):
        for dtype, bound in zip(("float32", "bfloat16"), bounds, strict=True):
            for heap, measured in heaps.items():
                value = measured.gain("linear", dtype, peer)
                yield Goal(f"fused linear / {peer} (JSD), {dtype}, {heap}", bound, True, value)
    yield _memory_from_hidden(default, "float32")
    yield from (_step_textbook(measured, "float32", heap) for heap, measured in heaps.items())
    yield from (_step_trl(measured, "float32", heap) for heap, measured in heaps.items())
    for heap, measured in heaps.items():
        value = measured.gain("generate", f"{names.MADE}, sampled", names.GENERATE, names.WRITER)
        yield Goal(f"writing / transformers generate, {names.MADE}, sampled, {heap}", 3, True, value)
    yield from (goal for heap, measured in heaps.items() for goal in _on_policy(measured, heap))


def _gpu(results: Results, own: str) -> Iterator[Goal]:
    measured, dtype = _Measured(results, "cuda", own), "bfloat16"
    for alpha in names.ALPHAS:
        case = group(alpha_case(alpha), dtype)
        value = measured.gain("loss", case, "textbook")
        yield Goal(f"loss + gradient given logits / textbook autograd, α = {alpha:g}, {dtype}", 8, True, value)
        took = measured.figure("loss", case, scale=1e3)
        yield Goal(f"loss + gradient given logits, α = {alpha:g}, {dtype}, first goal", 4.5, False, took, "ms")
        yield Goal(f"loss + gradient given logits, α = {alpha:g}, {dtype}, second goal", 2.9, False, took, "ms")
    value = measured.gain("loss", group("jsd", dtype), "TRL GKD")
    yield Goal(f"loss + gradient given logits / TRL GKD JSD, {dtype}", 8, True, value)
    yield _memory_given_logits(measured, dtype)
    ours = names.amid_linear(own)
    value = measured.over("linear", dtype, names.PRODUCTS, ours)
    yield Goal(f"fused linear over its bare products, {dtype}", 1.08, False, value)
    yield Goal(f"fused linear, {dtype}", 70, False, measured.figure("linear", dtype, ours, scale=1e3), "ms")
    for peer, bound in (("TRL chunked", 2), ("Liger", 1.5), ("Liger compiled", 1.5)):
        yield Goal(f"fused linear / {peer} (JSD), {dtype}", bound, True, measured.gain("linear", dtype, peer))
    yield _memory_from_hidden(measured, dtype)
    yield _step_textbook(measured, dtype, "GPU")
    yield _step_trl(measured, dtype, "GPU")
    yield from _on_policy(measured, "GPU")


def _on_policy(measured: _Measured, where: str) -> Iterator[Goal]:
    for pair in (names.MADE, names.REAL):
        for peer, bound in ((names.TRAINER, 2), (names.DISTILLATION, 1)):
            value = measured.gain("on_policy", pair, peer, names.OWN_TRAINER)
            yield Goal(f"on-policy training step / {peer}, {pair}, {where}", bound, True, value)


def _memory_given_logits(measured: _Measured, dtype: str) -> Goal:
    value = measured.figure("memory", group("logits", dtype))
    return Goal(f"extra memory given logits, {dtype}, in logits tensors", 0.05, False, value)


def _memory_from_hidden(measured: _Measured, dtype: str) -> Goal:
    value = measured.gain("memory", group("hidden", dtype), "textbook")
    return Goal(f"fused linear, extra memory / textbook autograd's, {dtype}", 20, True, value)


def _step_textbook(measured: _Measured, dtype: str, where: str) -> Goal:
    value = measured.gain("step", group(alpha_case(names.ALPHAS[0]), dtype), names.LOOP)
    return Goal(f"training step / textbook-loss loop, {dtype}, {where}", 3, True, value)


def _step_trl(measured: _Measured, dtype: str, where: str) -> Goal:
    value = measured.gain("step", group("jsd", dtype), names.TRAINER)
    return Goal(f"training step / TRL GKDTrainer, {dtype}, {where}", 5, True, value)


def print_goals(found: list[Goal], *, remark: str) -> None:
    """The table that the benchmark ends with."""
    print(f"\n== Goals: medians of per-round ratios (range){remark}\n")
    width = max(len(goal.text) for goal in found)
    print(f"  {'goal':<{width}}  {'bound':>9}  {'value':<26}verdict")
    for goal in found:
        sign = "≥" if goal.at_least else "≤"
        value = ratio_text(goal.value, goal.unit) or "–"
        print(f"  {goal.text:<{width}}  {f'{sign} {goal.bound:g} {goal.unit}':>9}  {value:<26}{goal.verdict}")
    counts = {verdict: sum(goal.verdict == verdict for goal in found) for verdict in ("pass", "fail", "not measured")}
    print("\n  " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()), flush=True)
