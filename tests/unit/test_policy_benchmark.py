"""The script behind the numbers of docs/choose/policy.md: its runs are run files, and its table is right."""

import json
import math
import sys
from pathlib import Path

import pytest

from amidkd.config import parse

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import policies


def test_every_run_is_a_run_file(tmp_path) -> None:
    names = set()
    for job in policies.jobs([1, 2]):
        tree = policies.settings(tmp_path, tmp_path / "shared", job.seed)
        for section, values in job.changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        parse({**tree, "output": str(job.folder(tmp_path))})
        names.add(job.folder(tmp_path))
    assert len(names) == len(list(policies.jobs([1, 2]))) == 2 * (4 * 3 + 2)


def test_means_errors_and_differences_at_equal_seed(tmp_path) -> None:
    values = {("dataset", 1): 0.5, ("dataset", 2): 0.7, ("mixed", 1): 0.6, ("mixed", 2): 0.9}
    for job in policies.jobs([1, 2]):
        value = values.get((job.policy, job.seed))
        if job.objective != "forward KL" or value is None:
            continue
        metrics = {name: {"value": value} for name in policies.COLUMNS}
        record = job.folder(tmp_path) / "record.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"results": {"evaluation": {"student": {"metrics": metrics}}}}))
    first, second = policies.table(tmp_path, [1, 2])
    assert (first["policy"], second["policy"]) == ("dataset", "mixed")
    assert first["nll"] == pytest.approx([0.6, 0.1])
    assert second["nll"] == pytest.approx([0.75, 0.15])
    # At equal seed the two differ by 0.1 and 0.2.
    assert second["nll, less dataset's"] == pytest.approx([0.15, 0.05])
    assert not any(math.isnan(value) for value in second["nll"])
