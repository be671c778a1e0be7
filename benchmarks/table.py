"""How rows look in a terminal."""

from timing import NOISY, Ratio, Results, Row

__all__ = ["print_group", "print_heading", "ratio_text"]

HEADINGS = {
    "accuracy": "Accuracy: largest error over the largest right value, against float64",
    "memory": "Memory that a call adds beside inputs and gradients, in logits tensors [N, V]; a process per method",
    "loss": "Loss and gradient, logits given",
    "linear": "Loss and gradient from hidden states and heads",
    "step": "Training step: forward of both models, loss, backward, AdamW",
    "generate": "Writing with a key-value cache: prompts padded on the left, EOS out of reach",
    "on_policy": "On-policy training, a whole step: the student writes, both models read, loss, backward, AdamW",
}


def print_heading(section: str, heap: str, sizes: str) -> None:
    print(f"\n== {HEADINGS[section]}\n   {heap} heap; {sizes}", flush=True)


def ratio_text(ratio: Ratio | None, unit: str = "×") -> str:
    """Median and range of a ratio."""
    if ratio is None:
        return ""
    whole = f"{ratio.median:.3g}{unit}" if unit == "×" else f"{ratio.median:.3g} {unit}"
    return whole if ratio.low == ratio.high else f"{whole} ({ratio.low:.3g}–{ratio.high:.3g})"


def print_group(group: str, yardstick: str, rows: list[Row]) -> None:
    """One table of methods that compute the same."""
    section = rows[0].section
    print(f"\n{group}", flush=True)
    if section == "accuracy":
        names = ("value error", "gradient error", "smallest value")
        print(f"  {'':<22}" + "".join(f"{name:>16}" for name in names))
    elif section == "memory":
        print(f"  {'':<22}{'logits tensors':>16}{'MB':>12}{'N':>8}{'seconds':>10}")
    else:
        print(f"  {'':<22}{'ms, median':>12}{'min – max':>22}    {_against(section, yardstick)}")
    for row in rows:
        print("  " + _line(row, yardstick, rows), flush=True)


def _against(section: str, yardstick: str) -> str:
    return f"time / {yardstick}" if section == "linear" else f"{yardstick} / time"


def _line(row: Row, yardstick: str, rows: list[Row]) -> str:
    if row.missing:
        return f"{row.method:<22}– {row.missing}"
    if row.section == "accuracy":
        figures = "".join(f"{figure:>16.1e}" for figure in row.figures.values())
        return f"{row.method:<22}{figures}  {row.note}".rstrip()
    if row.section == "memory":
        found = row.figures
        return (
            f"{row.method:<22}{found['logits_tensors']:>16.3f}{found['added_mb']:>12.1f}{found['tokens']:>8}"
            f"{found['seconds']:>10.2f}"
        )
    spread = f"{min(row.rounds) * 1e3:.2f} – {max(row.rounds) * 1e3:.2f}"
    other = next((found for found in rows if found.method == yardstick and found.rounds), None)
    pair = (row, other) if row.section == "linear" else (other, row)
    remarks = [f"noisy: max/min above {NOISY}"] if row.noisy else []
    if "tokens" in row.figures:
        remarks.append(f"{row.figures['tokens'] / row.median:,.0f} tokens/s")
    if "writing" in row.figures:
        remarks.append(f"{row.figures['writing']:.0%} of it writing")
    remarks += [row.note] if row.note else []
    text = f"{row.method:<22}{row.median * 1e3:>12.2f}{spread:>22}    {ratio_text(Results.ratio(*pair)):<24}"
    return f"{text}{'; '.join(remarks)}".rstrip()
