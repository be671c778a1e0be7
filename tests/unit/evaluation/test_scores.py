"""``scores.npz`` gives back what was measured, over all rows, and says plainly what it cannot read."""

import numpy as np
import pytest

from amidkd.config import EvaluationConfig
from amidkd.data import Row
from amidkd.errors import SettingError
from amidkd.evaluation import estimate, evaluate_model
from amidkd.evaluation.scores import choose, prompt_hash, read_scores, write_scores
from amidkd.evaluation.statistics import Scores


@pytest.fixture(scope="module")
def result(world):
    rows = [*world.rows[:5], Row(5, "rows.jsonl, line 6", text="red cat sits here"), *world.rows[6:8]]
    config = EvaluationConfig(sampling_seeds=[1, 2], batch_size=4)
    return evaluate_model(
        world.student, tokenizer=world.tokenizer, rows=rows, encoder=world.encoder, config=config, max_new_tokens=4
    )


def test_what_is_read_has_the_estimates_of_what_was_measured(result, tmp_path) -> None:
    write_scores(tmp_path / "scores.npz", {"": (result, result), "dolly": (result, None)})
    found = read_scores(tmp_path / "scores.npz")
    assert list(found) == ["", "dolly"]
    stored = found[""]
    assert len(stored.prompts) == len(set(stored.prompts)) == 8
    assert found["dolly"].teacher == {}
    assert set(stored.student) == set(result.scores)
    for side in (stored.student, stored.teacher):
        for name, scores in side.items():
            assert scores.counts.shape[-1] == 8, "every metric is over the same rows"
            again, before = estimate(scores), estimate(result.scores[name])
            assert again.value == pytest.approx(before.value, rel=1e-12)
            assert [(e.over, e.n) for e in again.errors] == [(e.over, e.n) for e in before.errors]
            assert [e.value for e in again.errors] == pytest.approx([e.value for e in before.errors], rel=1e-12)
    # The sixth row is plain text: it has a likelihood and no answer.
    assert stored.student["nll"].counts[5] > 0
    assert stored.student["length_greedy"].counts[..., 5].sum() == 0


def test_a_formula_survives_the_file(result, tmp_path) -> None:
    parts = np.arange(2 * 7 * 3, dtype=float).reshape(2, 7, 3)
    scores = Scores(parts, np.ones((2, 7)), ("sampling seeds", "prompts"), "calibration")
    changed = type(result)(result.held_out, {"ece": scores}, None, (), ())
    write_scores(tmp_path / "scores.npz", {"": (changed, None)})
    found = read_scores(tmp_path / "scores.npz")[""].student["ece"]
    assert (found.formula, found.axes) == ("calibration", scores.axes)
    assert np.array_equal(found.sums[:, [0, 1, 2, 3, 4, 6, 7]], parts)
    assert not found.counts[:, 5].any()
    assert estimate(found).value == estimate(scores).value


def test_a_hash_is_of_what_is_asked_and_what_is_right(world) -> None:
    row = world.rows[0]
    same = Row(99, "another.jsonl, line 1", prompt=row.prompt, completion=row.completion)
    assert prompt_hash(row, ["a"]) == prompt_hash(same, ["a"])
    assert prompt_hash(row, ["a"]) != prompt_hash(row, ["b"])
    assert prompt_hash(row, ["a"]) != prompt_hash(world.rows[1], ["a"])


def test_chosen_prompts_keep_their_order() -> None:
    scores = Scores(np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3)), ("sampling seeds", "prompts"))
    assert choose(scores, [2, 0]).sums.tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_a_file_that_cannot_be_read_says_how_to_make_it(tmp_path, content) -> None:
    path = tmp_path / "run" / "scores.npz"
    if content is not None:
        path.parent.mkdir()
        path.write_bytes(content)
    with pytest.raises(SettingError, match=r"amidkd eval .*run"):
        read_scores(path)
