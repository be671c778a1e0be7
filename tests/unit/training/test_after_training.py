"""``evaluation.after_training``: done at the end, and what it would refuse is refused at the beginning."""

from pathlib import Path

import pytest

from amidkd.config import parse
from amidkd.errors import SettingError
from amidkd.training import distill


def test_the_student_is_measured_when_it_is_done(run_tree) -> None:
    run_tree["data"] |= {"validation_rows": 3}
    run_tree["training"] |= {"max_steps": 1}
    run_tree["evaluation"] = {"after_training": True, "sampling_seeds": [1], "max_new_tokens": 4}
    folder = distill(parse(run_tree))
    evaluation = folder.record()["results"]["evaluation"]
    assert evaluation["student"]["model"] == str(folder.student)
    assert evaluation["data"]["rows"] == 3
    assert folder.scores_file.is_file()


def test_an_evaluation_that_cannot_be_done_stops_the_run_before_it_starts(run_tree, tmp_path: Path) -> None:
    run_tree["data"] |= {"validation_rows": 3}
    run_tree["evaluation"] = {"after_training": True, "suite": ["dolly"], "suite_folder": str(tmp_path / "nowhere")}
    with pytest.raises(SettingError, match="suite_folder: there is no folder"):
        distill(parse(run_tree))
    assert not (tmp_path / "run" / "record.json").exists()
    run_tree["evaluation"] = {"after_training": True}
    del run_tree["data"]["validation_rows"]
    with pytest.raises(SettingError, match="nothing to evaluate on"):
        distill(parse(run_tree))
