"""The run file's ``evaluation`` section by itself."""

import pytest
from pydantic import ValidationError

from amidkd.config import EvaluationConfig


def test_one_task_of_the_harness_may_be_a_word() -> None:
    for asked in ("arc_easy", ["arc_easy"], {"tasks": ["arc_easy"]}):
        found = EvaluationConfig.model_validate({"lm_eval": asked}).lm_eval
        assert found is not None
        assert found.tasks == ["arc_easy"]


def test_answers_are_not_counted_twice() -> None:
    with pytest.raises(ValidationError, match="sampling_seeds: 10 given twice"):
        EvaluationConfig(sampling_seeds=[10, 20, 10])
