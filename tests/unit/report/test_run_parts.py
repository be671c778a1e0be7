"""The parts of a run's page: pictures of two numbers, words on a difference, tokens, known methods, other results."""

import json
import re

import pytest

from amidkd.config import ObjectiveConfig
from amidkd.evaluation import METRICS, Estimate, Interval, StandardError
from amidkd.evaluation.code import CodeResult
from amidkd.evaluation.judge import Judged
from amidkd.evaluation.sandbox import Outcome
from amidkd.report.extras import extras_of, speed_of
from amidkd.report.overview import cards_of, gap_in_words
from amidkd.report.point import point_figure
from amidkd.report.results import measured, results_of, strip, suite_of
from amidkd.report.tokens import costly_tokens, token_rows

EXACT, NLL, KL = METRICS["exact_match_greedy"], METRICS["nll"], METRICS["kl_teacher_student"]


def entry(value: float, error: float = 0.01, interval: tuple[float, float] | None = None) -> dict:
    ends = None if interval is None else Interval(*interval, 0.95)
    return Estimate(value, (StandardError("prompts", error, 100),), ends).to_json()


def evaluation(**sides: dict) -> dict:
    found = {side: {"metrics": metrics} for side, metrics in sides.items()}
    return {"data": {"file": "x/v.jsonl", "rows": 100}, "settings": {}, "missing": [], **found}


def test_the_picture_has_the_student_its_interval_and_the_teacher_where_they_are() -> None:
    student = Estimate(0.25, (StandardError("prompts", 0.9, 10),), Interval(0.2, 0.375, 0.95))
    picture = str(strip(EXACT, student, Estimate(0.5)))
    assert 'aria-label="Exact match, greedy: student 25.0 %, teacher 50.0 %"' in picture
    assert '<circle cx="25.00%"' in picture
    assert 'class="interval" x1="20.00%" x2="37.50%"' in picture
    assert 'class="teacher" x1="50.00%" x2="50.00%"' in picture
    # Two standard errors where there is no interval; the line ends 8 % above the largest number, here 1.08.
    picture = str(strip(NLL, Estimate(1.0, (StandardError("prompts", 0.04, 10),)), Estimate(0.54)))
    assert 'class="interval" x1="78.88%" x2="92.59%"' in picture
    assert '<circle cx="85.73%"' in picture
    assert 'class="teacher" x1="46.30%"' in picture


@pytest.mark.parametrize(
    ("metric", "student", "teacher"),
    [(EXACT, None, Estimate(0.5)), (NLL, Estimate(float("inf")), Estimate(0.5)), (KL, Estimate(0.5), None)],
)
def test_no_picture_where_a_place_would_say_nothing(metric, student, teacher) -> None:
    assert strip(metric, student, teacher) is None


@pytest.mark.parametrize(
    ("metric", "gap", "words"),
    [
        (EXACT, entry(-0.02, 0.011), "the difference is inside the noise"),
        (EXACT, entry(-0.03, 0.011), "worse than the teacher"),
        (EXACT, entry(0.03, 0.011), "better than the teacher"),
        (NLL, entry(0.03, 0.011), "worse than the teacher"),
        (NLL, entry(-0.03, 0.02, (-0.05, -0.01)), "better than the teacher"),
        (NLL, entry(-0.03, 0.001, (-0.07, 0.01)), "the difference is inside the noise"),
        (METRICS["length_greedy"], entry(5.0), ""),
    ],
)
def test_a_difference_in_words(metric, gap, words) -> None:
    assert gap_in_words(metric, Estimate.from_json(gap)) == words


def test_cards_leave_out_what_says_nothing() -> None:
    sides = {
        "student": {"exact_match_greedy": entry(0.0), "rouge_l_sampled": entry(0.3), "nll": entry(0.5)},
        "teacher": {"exact_match_greedy": entry(0.6), "rouge_l_sampled": entry(0.5)},
        "difference": {"rouge_l_sampled": entry(-0.2)},
    }
    models = {"student": {"parameters": 1000}, "teacher": {"parameters": 2500}}
    cards = cards_of({"models": models, "results": {"evaluation": evaluation(**sides)}})
    assert [(card.label, card.value, card.detail) for card in cards] == [
        ("Parameters", "1 k", "the teacher has 2.5 times as many"),
        ("ROUGE-L, sampled", "30.0 %", "teacher 50.0 %; worse than the teacher"),
        ("NLL of real text", "0.500", "nats a token, lower is better"),
    ]
    assert cards_of({}) == []


def test_results_stand_in_groups_with_level_and_settings() -> None:
    found = evaluation(
        student={"nll": entry(0.5, interval=(0.4, 0.6)), "exact_match_sampled": entry(0.2), "ece": entry(0.1)}
    )
    settings = {"sampling_seeds": [1, 2], "temperature": 1.0, "max_new_tokens": 9, "no_repeat_ngram_size": 3}
    table = results_of(found, settings)
    assert [row.group for row in table["grid"].rows] == ["Answers", "Real text", "Calibration"]
    assert measured(found) == ["exact_match_sampled", "nll", "ece"]
    assert table["grid"].rows[1].cells[0].interval == "0.400 to 0.600"
    for words in ("95 % confidence interval", "v.jsonl", "seeds 1, 2", "No run of 3 tokens", "Longest answer: 9"):
        assert words in table["note"]
    assert "Sampled" not in results_of(evaluation(student={"nll": entry(0.5)}), settings)["note"]


def test_the_suite_shows_the_papers_metric_where_tasks_have_it() -> None:
    tasks = {
        "dolly": evaluation(student={"rouge_l_sampled": entry(0.2), "nll": entry(1.0)}),
        "own_task": evaluation(student={"rouge_l_sampled": entry(0.3)}, teacher={"rouge_l_sampled": entry(0.4)}),
    }
    suite = suite_of({"suite": tasks, "settings": {}})
    assert suite["title"] == "ROUGE-L, sampled"
    assert [(row.head.title, row.cells[0].text, row.cells[1] and row.cells[1].text) for row in suite["grid"].rows] == [
        ("dolly", "20.0 %", None),
        ("own task", "30.0 %", "40.0 %"),
    ]
    assert suite_of({"suite": {"a": evaluation(student={"nll": entry(1.0)})}})["title"] == "NLL of real text"
    assert suite_of({}) is None


def place(text: str, kl: float | None) -> dict:
    top = [[text, 0.75], ["<b>", 0.1]]
    return {"text": text, "kl": kl, "p": 0.75, "q": 1e-7, "teacher": top, "student": top[::-1]}


LINE = {
    "row": "v.jsonl, line 3",
    "prompt": "p",
    "kl": 0.5,
    "alpha": None,
    "lam": None,
    "tokens": [place("a", 0.25), place("</script>", None), place("a", 1.25), place("b", 0.5)],
}


def test_a_row_of_tokens_names_its_worst_places_first() -> None:
    (row,) = token_rows([LINE])
    assert [(at.number, at.kl) for at in row.places] == [(2, "not finite"), (3, "1.250"), (4, "0.500"), (1, "0.250")]
    assert row.places[1].student == "1e-5 %"
    assert row.places[1].teacher_first == "a 75.0 %"
    assert row.text == "a </script> a b"
    assert token_rows([{**LINE, "tokens": [place("a", 1.0), place(" b", 1.0)]}])[0].text == "a b"
    # What is put into the page cannot end its element, and is the same once read.
    assert "<" not in row.data
    read = json.loads(row.data)
    assert read["tokens"][1] == [
        "</script>",
        None,
        0.75,
        1e-7,
        ["</script>", 0.75, "<b>", 0.1],
        [],
        ["<b>", 0.1, "</script>", 0.75],
    ]


def test_the_tokens_that_cost_most_are_summed_over_their_places() -> None:
    first, second = costly_tokens([LINE])
    assert (first.text, first.times, first.mean, first.share) == ("a", 2, 0.75, 0.75)
    assert (second.text, second.share) == ("b", 0.25)
    assert costly_tokens([{**LINE, "tokens": [place("a", 0.0)]}]) == []


def test_a_run_lies_among_known_methods_where_it_has_an_assistant() -> None:
    figure = point_figure(ObjectiveConfig(alpha=-3, lam=0.25))
    assert figure is not None
    assert "this run: α = −3, λ = 0.25" in figure.svg
    assert "This run: KL(teacher‖assistant), α = −3, λ = 0.25" in figure.svg
    assert point_figure(ObjectiveConfig(between="teacher||student")) is None


def test_a_schedule_is_the_path_that_it_took() -> None:
    objective = ObjectiveConfig.model_validate({"alpha": {"kind": "linear", "start": 1, "end": -3}, "lam": 0.5})
    before = point_figure(objective)
    lines = [{"step": step, "alpha": 1 - step / 10, "lam": 0.5} for step in range(1, 21)]
    under_way = point_figure(objective, lines)
    assert before is not None
    assert under_way is not None
    assert "this run: α = −3, λ = 0.5" in before.svg
    assert "this run: α = −1, λ = 0.5" in under_way.svg


def test_several_terms_are_several_points() -> None:
    terms = [
        {"weight": 0.3, "divergence": "kl", "between": "teacher||assistant", "alpha": -1, "lam": 0.3},
        {"weight": 0.7, "divergence": "kl", "between": "student||assistant", "alpha": 2, "lam": 0.7},
    ]
    figure = point_figure(ObjectiveConfig.model_validate({"terms": terms}))
    assert figure is not None
    assert len(re.findall(r'id="point-run-\d"', figure.svg)) == 2


def test_speed_stands_beside_the_teachers() -> None:
    speed = {"batch_size": 16, "new_tokens": 32, "rounds": 3, "device": "cpu, 2 threads"}
    sides = {
        "student": {"tokens_per_second": 3000.0, "parameters": 1000, "weights_bytes": 4000, "work_per_token": 2000},
        "teacher": {"tokens_per_second": 1000.0, "parameters": 4000, "weights_bytes": 2**21, "work_per_token": 8000},
    }
    found = speed_of({"speed": {**speed, **sides}})
    assert found["heads"] == ["", "student", "teacher", "student / teacher"]
    assert found["rows"] == [
        ["greedy tokens a second", "3 k", "1 k", "3 ×"],
        ["parameters", "1,000", "4,000", "0.25 ×"],
        ["weights", "4 KiB", "2 MiB", "0.0019 ×"],
        ["operations a token", "2 k", "8 k", "0.25 ×"],
    ]
    assert speed_of({"speed": {**speed, "student": sides["student"]}})["heads"] == ["", "student"]
    # Rows without prompts leave nothing to time.
    untimed = speed_of({"speed": {"student": {"parameters": 1000, "weights_bytes": 4000, "work_per_token": 2000}}})
    assert untimed["rows"][0] == ["parameters", "1,000"]
    assert not any("Median" in note for note in untimed["notes"])
    assert speed_of({}) is None


def test_other_results_are_tables_of_what_the_record_holds() -> None:
    metric = {"label": "acc", "better": "higher", "student": entry(0.3125, 0.041), "teacher": entry(0.45, 0.05)}
    drafts = {"prompts": 16, "draft_tokens": 5, "drafted": 400, "judged": 250, "accepted": 180, "tokens": 310}
    drafts |= {"tokens_per_step": 3.44, "tokens_per_step_predicted": 3.3, "speedup": 1.25}
    drafts |= {"tokens_per_second": 500.0, "tokens_per_second_teacher_alone": 400.0}
    judged = Judged([1.0, 0.5, 0.0, None], [True, False, True], None, 6, 1)
    right, wrong = Outcome(True, "", "", 0.1), Outcome(False, "AssertionError: no", "", 0.1)
    late = Outcome(False, "time: over 1 s", "", 1.0)
    half = {"teacher": CodeResult({}, [[right, wrong]]).to_json()}
    found = extras_of(
        {
            "judge": {"model": "j", **judged.to_json(), "suite": {"self_instruct": judged.to_json()}},
            "code": {"guards": {}, "student": CodeResult({}, [[right, wrong, wrong, late]]).to_json(), **half},
            "lm_eval": {"harness": "0.4", "limit": 5, "tasks": {"arc": {"rows": 100, "metrics": {"acc,none": metric}}}},
            "speculative": drafts,
        }
    )
    rows = {table["title"]: table["rows"] for table in found}
    assert ["kept of the judged", "180 (72.0 %)"] in rows["As a draft for the teacher"]
    assert rows["Before a judge"] == [["wins", "1", "1"], ["ties", "1", "1"], ["losses", "1", "1"]]
    assert rows["Answers run as code"] == [
        ["passed", "1 (25.0 %)", "1 (50.0 %)"],
        ["AssertionError", "2 (50.0 %)", "1 (50.0 %)"],
        ["time", "1 (25.0 %)", "0 (0.0 %)"],
    ]
    assert rows["Tasks of the evaluation harness"] == [
        ["arc: acc, higher is better, 100 rows", "0.3125 ± 0.041", "0.45 ± 0.05"]
    ]
    assert extras_of({}) == []
    # Rows of plain text beside a suite, and a judge that never answered.
    (table,) = extras_of({"judge": {"model": "j", "suite": {"self_instruct": judged.to_json()}}})
    assert table["heads"] == ["student’s answers", "self instruct"]
    assert extras_of({"judge": {"model": "j", "against": "teacher"}}) == []
