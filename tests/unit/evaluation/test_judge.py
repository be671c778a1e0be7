"""The judge over HTTP, with judges of several characters."""

from pathlib import Path

import pytest

from amidkd import transport
from amidkd.errors import SettingError
from amidkd.evaluation.judge import Comparison, Judge, judge_pairs, verdict_of
from amidkd.evaluation.statistics import estimate
from amidkd.record import read_json_lines
from judge_world import judging, longer

PAIRS = [Comparison(f"rows.jsonl, line {n}", f"Question {n}?", "x" * n, "y" * (5 - n)) for n in range(1, 5)]
"""The student's answer is shorter than the other's in the first two, longer in the last two."""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_LONGEST_PAUSE", 0.0)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", "A"),
        ("B is [[B]]-like but\n\n**[[A]]**\n", "A"),
        ("My verdict: [[C]].", "tie"),
        ("The verdict is [[B]]\nThank you.", "B"),
        ("[[A]] or [[B]]", None),
        ("A", None),
        ("[[D]]", None),
        ("", None),
        ("I chose [[A]]\nno, [[B]]\nhard to say", None),
    ],
)
def test_a_reply_has_one_verdict_or_none(reply: str, verdict: str | None) -> None:
    assert verdict_of(reply) == verdict


def test_each_pair_is_asked_in_both_orders_and_a_win_is_a_win_in_both(tmp_path: Path) -> None:
    with judging(longer) as (config, seen):
        judged = judge_pairs(Judge(config), PAIRS, config, tmp_path / "judge.jsonl")
    assert judged.points == [0.0, 0.0, 1.0, 1.0]
    assert judged.agreed == [True] * 4
    assert judged.first == 0.5
    assert estimate(judged.scores()["judge_win_rate"]).value == 0.5
    assert len(seen) == 8
    assert {body["path"] for body in seen} == {"/v1/chat/completions"}
    assert all(body["model"] == "judge-1" and body["max_tokens"] == 512 and body["temperature"] == 0 for body in seen)
    lines = read_json_lines(tmp_path / "judge.jsonl")
    assert sorted((line["row"], line["student_is"]) for line in lines) == sorted(
        (pair.where, name) for pair in PAIRS for name in "AB"
    )
    assert all(line["reply"].startswith("By length.") for line in lines)


def test_a_judge_that_favours_a_place_gives_ties(tmp_path: Path) -> None:
    with judging(lambda a, b, talk: "[[A]]") as (config, _):
        judged = judge_pairs(Judge(config), PAIRS, config, tmp_path / "judge.jsonl")
    assert judged.points == [0.5] * 4
    assert judged.agreed == [False] * 4
    assert judged.to_json() | {"prefers_first": 1.0, "ties": 4, "orders_agree": 0.0} == judged.to_json()


def test_win_and_tie_is_a_tie(tmp_path: Path) -> None:
    answers = iter(["[[A]]", "[[C]]"])
    with judging(lambda a, b, talk: next(answers), parallel=1) as (config, _):
        judged = judge_pairs(Judge(config), PAIRS[:1], config, tmp_path / "judge.jsonl")
    assert judged.points == [0.5]


def test_equal_answers_and_rows_that_are_not_judged_cost_nothing(tmp_path: Path) -> None:
    same = Comparison("rows.jsonl, line 9", "Why?", "because ", "because")
    with judging(longer) as (config, seen):
        judged = judge_pairs(Judge(config), [None, same, PAIRS[3], None], config, tmp_path / "judge.jsonl")
    assert judged.points == [None, 0.5, 1.0, None]
    assert judged.agreed == [True]
    assert len(seen) == 2
    scores = judged.scores()["judge_win_rate"]
    assert scores.counts.tolist() == [0, 1, 1, 0]
    assert estimate(scores).value == 0.75


def test_verdicts_that_are_there_are_not_asked_again_even_after_a_cut_line(tmp_path: Path) -> None:
    transcript = tmp_path / "judge.jsonl"
    with judging(longer) as (config, seen):
        first = judge_pairs(Judge(config), PAIRS, config, transcript)
        text = transcript.read_text()
        transcript.write_text(text[: len(text) - 40])
        again = judge_pairs(Judge(config), PAIRS, config, transcript)
        assert len(seen) == 9
        assert again.asked == 1
        assert again.points == first.points
        assert len(read_json_lines(transcript)) == 8
        other = config.model_copy(update={"model": "judge-2"})
        judge_pairs(Judge(other), PAIRS[:1], other, transcript)
        assert len(seen) == 11


def test_a_reply_without_a_verdict_is_asked_for_one_and_then_left_out(tmp_path: Path) -> None:
    def late(a: str, b: str, talk: list[dict]) -> str:
        return longer(a, b, talk) if len(talk) == 4 else "Hard to say."

    with judging(late) as (config, seen):
        judged = judge_pairs(Judge(config), PAIRS, config, tmp_path / "late.jsonl")
    assert judged.points == [0.0, 0.0, 1.0, 1.0]
    assert len(seen) == 16
    with judging(lambda a, b, talk: "Hard to say.") as (config, seen):
        judged = judge_pairs(Judge(config), PAIRS[:1], config, tmp_path / "never.jsonl")
    assert judged.points == [None]
    assert judged.unread == 2
    assert judged.scores() == {}
    assert len(seen) == 6


def test_what_fails_for_a_while_is_asked_again_and_a_judge_that_is_gone_keeps_what_it_said(tmp_path: Path) -> None:
    numbers = iter(range(1000))

    def moody(a: str, b: str, talk: list[dict]) -> str:
        if next(numbers) % 2 == 0:
            raise ValueError("503 busy")
        return longer(a, b, talk)

    with judging(moody, parallel=1) as (config, _):
        assert judge_pairs(Judge(config), PAIRS, config, tmp_path / "moody.jsonl").points == [0.0, 0.0, 1.0, 1.0]

    left = iter(range(3))

    def dying(a: str, b: str, talk: list[dict]) -> str:
        if next(left, None) is None:
            raise ValueError("402 no credit left for hunter2")
        return longer(a, b, talk)

    with judging(dying, parallel=1) as (config, seen):
        judged = judge_pairs(Judge(config), PAIRS, config, tmp_path / "dying.jsonl")
    assert judged.points == [0.0, None, None, None]
    assert "no credit left" in str(judged.failure)
    assert len(seen) == 4
    assert len(read_json_lines(tmp_path / "dying.jsonl")) == 3


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "hunter2")

    def loud(a: str, b: str, talk: list[dict]) -> str:
        raise ValueError("402 the key hunter2 has no credit")

    with judging(loud, key_variable="JUDGE_KEY") as (config, seen):
        judged = judge_pairs(Judge(config), PAIRS, config, tmp_path / "judge.jsonl")
        with pytest.raises(SettingError) as caught:
            Judge(config).check()
    assert {body["authorization"] for body in seen} == {"Bearer hunter2"}
    assert "hunter2" not in f"{judged.failure} {caught.value} {config!r}"
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(
        SettingError, match=r"evaluation\.judge\.key_variable: the environment has no variable JUDGE_KEY"
    ):
        Judge(config)


@pytest.mark.parametrize(
    ("status", "setting"), [(401, "key_variable"), (404, "url or evaluation.judge.model"), (400, "model")]
)
def test_a_judge_that_refuses_is_an_error_before_any_work(status: int, setting: str) -> None:
    def refuses(a: str, b: str, talk: list[dict]) -> str:
        raise ValueError(f"{status} no")

    with judging(refuses) as (config, _), pytest.raises(SettingError, match=f"judge.{setting}: .*refused"):
        Judge(config).check()


def test_a_judge_that_is_not_there_is_an_error_before_any_work() -> None:
    with judging(longer) as (config, _):
        Judge(config).check()
    with pytest.raises(SettingError, match=r"evaluation\.judge\.url: .* does not answer"):
        Judge(config).check()


def test_names_of_newer_models_are_learnt_from_their_refusal() -> None:
    # The body that came is the last one seen.
    def newer(a: str, b: str, talk: list[dict]) -> str:
        if "max_tokens" in seen[-1]:
            raise ValueError("400 use 'max_completion_tokens' instead of 'max_tokens'")
        if "temperature" in seen[-1]:
            raise ValueError("400 this model knows no temperature")
        return "[[C]]"

    with judging(newer) as (config, seen):
        Judge(config).check()
    assert len(seen) == 3
    assert seen[-1]["max_completion_tokens"] == 512
