"""Tables of the measurements of teachers, as Markdown."""

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from teachers_runs import KINDS, by_kind

__all__ = ["show", "training_table"]

Rows = list[dict[str, Any]]


def show(found: dict[str, Rows]) -> None:
    """Print a table for each section that was measured."""
    tables: dict[str, Callable[[Rows], None]] = {
        "error": _errors,
        "samples": _samples,
        "training": _training,
        "bytes": _bytes,
        "distill": _distill,
    }
    for name, print_table in tables.items():
        if found.get(name):
            print_table(found[name])


def _table(title: str, head: list[str], rows: Iterable[list[str]]) -> None:
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def percent(value: float | None, *, sign: bool = False) -> str:
    """Two digits, in percent."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    value *= 100
    if abs(value) < 5e-5:
        return "0"
    digits = max(0, min(4, 1 - math.floor(math.log10(abs(value)))))
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _of(rows: Rows, name: str) -> list[Any]:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(row[name] for row in rows))


def _errors(rows: Rows) -> None:
    for world in _of(rows, "world"):
        here = [row for row in rows if row["world"] == world]
        cells = {(row["objective"], row["form"], row["k"]): row for row in here}
        ks = [k for k in _of(here, "k") if k is not None]
        tails = {row["k"]: row["teacher_tail_mass"] for row in here if row["k"] is not None}
        for what, name, sign in (
            ("gradient of the parameters", "parameters_gradient_error", False),
            ("loss", "loss_error", True),
        ):
            _table(
                f"{world}: error of the {what}, % ({here[0]['tokens']} tokens)",
                ["objective", *(f"k = {k}" for k in ks), "hidden (bfloat16)", "hidden (float16)"],
                [
                    ["*mass of the tail, %*", *(percent(tails[k]) for k in ks), "", ""],
                    *(
                        [
                            objective,
                            *(percent(cells[objective, "top_k", k][name], sign=sign) for k in ks),
                            percent(cells[objective, "hidden", None][name], sign=sign),
                            percent(cells[objective, "hidden, float16", None][name], sign=sign),
                        ]
                        for objective in _of(here, "objective")
                    ),
                ],
            )
        forms = [form for form in _of(here, "form") if not form.startswith("hidden")]
        chosen = ("forward KL", "reverse KL", "skew forward KL, κ = 0.1", "AMiD, α = −0.5", "AMiD, α = −3")
        _table(
            f"{world}: the same bytes used otherwise; error of loss / gradient of the parameters, %",
            ["objective", "form", *(f"k = {k}" for k in ks)],
            [
                [objective, form, *(_both(cells.get((objective, form, k))) for k in ks)]
                for objective in chosen
                for form in forms
                if (objective, form, ks[0]) in cells
            ],
        )


def _both(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    if math.isinf(row["loss_error"]):
        return "∞ / none"
    return f"{percent(row['loss_error'], sign=True)} / {percent(row['parameters_gradient_error'])}"


def _samples(rows: Rows) -> None:
    for world in _of(rows, "world"):
        here = [row for row in rows if row["world"] == world]
        sizes = list(here[0]["batch_errors"])
        _table(
            f"{world}: forward KL at equal bytes; error of the gradient, %",
            ["bytes", "store", "draws", "one token", *(f"{size} tokens" for size in sizes), "mean of 16 redraws"],
            [
                [
                    f"{row['bytes']:.0f}",
                    row["store"] + (f", k = {row['k']}" if row["store"] == "top_k" else ""),
                    str(row["draws"] or ""),
                    percent(row["token_error"]),
                    *(percent(row["batch_errors"][size]) for size in sizes),
                    percent(row["one_batch_mean_of_redraws"]),
                ]
                for row in here
            ],
        )


def training_table(rows: Rows) -> Rows:
    """A row for each store: mean KL from the teacher over the seeds, and mean and standard error of what it adds."""
    live = {(row["world"], row["seed"]): row for row in rows if row["store"] == "live"}
    groups: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        groups.setdefault((row["world"], row["store"], row["k"]), []).append(row)
    found = []
    for (world, store, k), members in groups.items():
        made: dict[str, Any] = {"world": world, "store": store, "k": k, "bytes": members[0].get("bytes")}
        for name in ("kl_teacher_student", "top1_agreement"):
            made[name] = statistics.mean(row[name] for row in members)
            if store not in ("live", "untrained"):
                more = [row[name] - live[world, row["seed"]][name] for row in members]
                error = statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else math.nan
                made[f"{name}, more than live"] = [statistics.mean(more), error]
        found.append(made)
    return found


def _training(rows: Rows) -> None:
    table = training_table(rows)
    for world in _of(table, "world"):
        here = [row for row in table if row["world"] == world]
        lines = []
        for row in here:
            more = row.get("kl_teacher_student, more than live")
            lines.append(
                [
                    row["store"].replace("untrained", "before the training")
                    if row["k"] is None
                    else f"{row['store']}, at the bytes of k = {row['k']}",
                    "" if row["bytes"] is None else f"{row['bytes']:.0f}",
                    f"{row['kl_teacher_student']:.4f}",
                    "" if more is None else f"{more[0]:+.4f} ± {more[1]:.4f}".replace("-", "−"),
                    percent(row["top1_agreement"]),
                ]
            )
        _table(
            f"{world}: students after the same steps under forward KL; three seeds",
            ["teacher", "bytes a token", "KL(p‖q), held out", "more than live", "same first choice, %"],
            lines,
        )


def _bytes(rows: Rows) -> None:
    formats = [row for row in rows if row["kind"] == "format"]
    names = list(dict.fromkeys(name for row in formats for name in row if name not in ("kind", "model")))
    _table(
        "bytes of a token",
        ["model", *names],
        [[row["model"], *(f"{row[name]:,}" if name in row else "–" for name in names)] for row in formats],
    )
    _table(
        "caches on disk, bytes of a token",
        ["model", "format", "sequences", "tokens", "signal", "Parquet files", "beside them, bytes in all"],
        [
            [
                row["model"],
                row["format"],
                f"{row['rows']:,}",
                f"{row['tokens']:,}",
                str(row["layout_bytes"]),
                f"{row['parquet_bytes']:.1f}",
                f"{row['other_files_bytes']:,}",
            ]
            for row in rows
            if row["kind"] == "file"
        ],
    )


def _distill(rows: Rows) -> None:
    table, order = by_kind(rows), [kind.name for kind in KINDS]
    for world in _of(table, "world"):
        _table(
            f"{world}: the same run with its teacher elsewhere; medians of the rounds",
            [
                "teacher",
                "ms a step",
                "of live's",
                "trainer's CPU seconds",
                "largest difference of the loss",
                "in %",
                "waited for the server, ms a step",
                "of its work hidden, %",
            ],
            [
                [
                    row["kind"],
                    f"{1000 * row['step_seconds']:.0f}",
                    f"{row['ratio']:.2f} ({row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f})",
                    f"{row['cpu_seconds']:.0f}",
                    f"{row['largest_difference']:.2g}",
                    percent(row["largest_relative_difference"]),
                    "" if row["waited"] is None else f"{1000 * row['waited']:.0f}",
                    "" if row["waited"] is None else percent(max(0.0, row["hidden_part"])),
                ]
                for row in sorted(table, key=lambda row: order.index(row["kind"]))
                if row["world"] == world
            ],
        )
