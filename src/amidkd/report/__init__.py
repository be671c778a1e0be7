"""Pages made from records: one run (``report.html``), or several students in one table.

Every number on a page comes from a record (``record.json``, ``metrics.jsonl``, ``samples.jsonl``, or the
:class:`~amidkd.evaluation.Estimate` objects that became one); a page never loads anything from outside itself.

One run::

    write_report(RunFolder(path))                     # -> path/report.html

A sweep, and where one of its runs stands in it::

    write_sweep_report(path)                          # the sweep's folder -> path/report.html
    sweep_of_run(run_folder)                          # -> a sentence and maps, or None for a run of no sweep

Several students on the same prompts::

    write_comparison(
        Path("demo-run/report.html"),
        title="Small tasks",
        sentence="A teacher of 1.2 M parameters, distilled into students of 0.2 M …",
        rows=[
            ComparisonRow("teacher", {"exact_match_greedy": Estimate(0.91, (StandardError("prompts", 0.01, 500),)), …}),
            ComparisonRow("AMiD", {…}, detail="kl(teacher‖assistant), α = −1, λ = 0.1"),
        ],
        columns=["exact_match_greedy", "exact_match_sampled", "rouge_l_greedy", "nll", …],   # names in METRICS
        notes=["Errors over prompts: 500 held-out instructions. Errors over training seeds: 2 seeds."],
        curves={"AMiD": lines_of_run(folder), …},                       # lines of metrics.jsonl, by student
        records={"AMiD": folder.record(), …},                           # record.json, by student
        samples=[{"prompt": "…", "references": ["…"], "answers": {"teacher": "…", "AMiD": "…"}}],
        citations=citations_of(config),
        command="amidkd demo",
    )

Runs that were made apart, from their folders::

    compare_runs([Path("runs/a"), Path("runs/b")])    # -> runs/comparison.html
"""

from amidkd.report.compare import Compared, compared, print_compared
from amidkd.report.comparison import ComparisonRow, write_comparison
from amidkd.report.curves import lines_of_run
from amidkd.report.formats import compare_runs, report_on, write_compared
from amidkd.report.run import write_report
from amidkd.report.sweep import is_sweep, summary_of_sweep, sweep_of_run, write_sweep_report

__all__ = [
    "Compared",
    "ComparisonRow",
    "compare_runs",
    "compared",
    "is_sweep",
    "lines_of_run",
    "print_compared",
    "report_on",
    "summary_of_sweep",
    "sweep_of_run",
    "write_compared",
    "write_comparison",
    "write_report",
    "write_sweep_report",
]
