"""Runs compared from their folders: which can be, on which prompts, and what the page, Markdown and JSON say."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from amidkd.cli import main
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate, Interval, ModelResult, difference, write_scores
from amidkd.evaluation.compare import Gap, Verdict
from amidkd.record import RunFolder, write_json
from amidkd.report import compare_runs, compared
from amidkd.report.compare.figures import gap_figures
from amidkd.report.compare.shared import Side
from amidkd.report.compare.words import sentence_of_pair
from compare_world import make, result


def as_json(paths: list[Path], target: Path) -> dict:
    return json.loads(compare_runs(paths, form="json", path=target / "c.json").read_text())


def test_two_runs_are_paired_prompt_by_prompt(tmp_path: Path) -> None:
    paths = [make(tmp_path / "runs" / "a", 0.0), make(tmp_path / "runs" / "b", 0.4, 1, alpha=-3)]
    found = as_json(paths, tmp_path)
    assert (found["baseline"], found["prompts"]) == ("a", {"": 80})
    side = found["sides"][1]
    assert side["settings"] == {"objective.alpha": -3}
    ours, theirs = (result(shift, seed).scores["nll"] for shift, seed in ((0.4, 1), (0.0, 0)))
    expected = difference(ours, theirs)
    gap = side["difference"]["nll"]
    assert gap["value"] == pytest.approx(expected.value)
    assert gap["errors"][0]["stderr"] == pytest.approx(expected.errors[0].value)
    assert gap["interval"][0] < expected.value < gap["interval"][1]
    assert gap["finding"] == "prompts"
    assert gap["p_holm"] == pytest.approx(min(1.0, 3 * gap["p"]), rel=0.5)
    assert side["difference"]["exact_match_sampled"]["verdict"] == "inside the noise"
    assert "over_training_seeds" not in gap
    assert "perplexity" in side["metrics"]
    assert "kl_teacher_student" not in found["teacher"], "a teacher is no distance from itself"


def test_runs_of_one_configuration_are_draws_of_it(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / f"{name}-seed-{seed}", shift + 0.02 * seed, 10 * seed + n, alpha=alpha, training_seed=seed)
        for n, (name, shift, alpha) in enumerate((("kl", 0.0, 1.0), ("amid", 0.4, -0.5)))
        for seed in (1, 2, 3)
    ]
    found = as_json(paths, tmp_path)
    assert [side["name"] for side in found["sides"]] == ["kl", "amid"]
    assert [run["seed"] for run in found["sides"][1]["runs"]] == [1, 2, 3]
    gap = found["sides"][1]["difference"]["nll"]
    assert gap["over_training_seeds"]["paired"]
    assert gap["over_training_seeds"]["df"] == 2
    assert (gap["finding"], gap["verdict"]) == ("holds", "worse over prompts and training seeds")
    assert {e["over"] for e in found["sides"][0]["metrics"]["nll"]["errors"]} == {"prompts", "training seeds"}
    assert set(found["sides"][0]["spread"]["exact_match_sampled"]) == {"training seeds", "sampling seeds"}


def test_runs_that_differ_in_nothing_but_the_seed_are_compared_singly(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"r{seed}", 0.0, seed, training_seed=seed) for seed in (1, 2)]
    assert [side["name"] for side in as_json(paths, tmp_path)["sides"]] == ["r1", "r2"]


def test_a_run_made_twice_is_no_second_seed(tmp_path: Path) -> None:
    paths = [make(tmp_path / name, 0.0, alpha=alpha) for name, alpha in (("a", 1), ("again", 1), ("b", 2))]
    found = as_json(paths, tmp_path)
    assert [side["name"] for side in found["sides"]] == ["a", "again", "b"]
    assert found["sides"][1]["difference"]["nll"]["verdict"] == "the same on every prompt"


def test_only_the_prompts_that_all_answered_count(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, 1, alpha=0, first=60)]
    found = as_json(paths, tmp_path)
    assert found["prompts"] == {"": 20}
    assert any("20 prompts that every run answered (a 80, b 80)" in note for note in found["notes"])
    ours, theirs = result(0.0, 1, first=60).scores["nll"].sums[:20], result(0.0, 0).scores["nll"].sums[60:]
    assert found["sides"][1]["difference"]["nll"]["value"] == pytest.approx((ours - theirs).sum() / 80)


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    first = make(tmp_path / "a", 0.0)
    other_tokens = make(tmp_path / "tokens", 0.0, 1, alpha=0, tokens=5)
    other_teacher = make(tmp_path / "teacher", 0.0, 2, alpha=2, teacher=1.0)
    found = as_json([first, other_tokens, other_teacher], tmp_path)
    sides = {side["name"]: set(side["difference"]) for side in found["sides"][1:]}
    assert sides == {"tokens": {"exact_match_sampled"}, "teacher": {"nll", "exact_match_sampled"}}
    notes = " ".join(found["notes"])
    assert "tokens and a cut the held-out text into other tokens" in notes
    assert "teacher was held against another teacher than a, so these are not compared: KL(teacher‖student)" in notes


JUDGE = {"model": "j", "against": "teacher", "answers": "greedy", "instruction": None, "url": "http://one"}


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"coverage_epsilon": 0.05}, {"coverage"}),
        ({"sampling_seeds": [1]}, {"distinct_1_sampled"}),
        ({"judge": {**JUDGE, "against": "reference"}}, {"judge_win_rate"}),
        ({"judge": {**JUDGE, "url": "http://two"}}, set()),
    ],
)
def test_metrics_that_a_setting_makes_another_number_are_not_compared(
    tmp_path: Path, settings: dict, left_out: set
) -> None:
    metrics = {"coverage", "distinct_1_sampled", "judge_win_rate"}
    paths = []
    for name, changed in (("a", {}), ("b", settings)):
        run = RunFolder(make(tmp_path / name, 0.0, len(paths), alpha=len(paths)))
        found = result(0.0, len(paths))
        scores = found.scores | dict.fromkeys(metrics, found.scores["nll"])
        write_scores(run.scores_file, {"": (replace(found, scores=scores), None)})
        evaluation = run.record()["results"]["evaluation"]
        evaluation["settings"] |= {"coverage_epsilon": 1e-3, "sampling_seeds": [1, 2], "judge": JUDGE} | changed
        run.update_record(results={"evaluation": evaluation})
        paths.append(run.path)
    found = as_json(paths, tmp_path)
    assert metrics - set(found["sides"][1]["difference"]) == left_out
    told = [note for note in found["notes"] if "were measured with other settings" in note]
    assert len(told) == bool(left_out)


def test_runs_that_cannot_be_used_are_left_out_by_name(tmp_path: Path) -> None:
    paths = [make(tmp_path / "a", 0.0), make(tmp_path / "b", 0.0, 1, alpha=0)]
    (tmp_path / "empty").mkdir()
    new = RunFolder(tmp_path / "new")
    write_json(new.record_file, {"verb": "distill"})
    old = RunFolder(make(tmp_path / "old", 0.0, 3, alpha=1))
    old.scores_file.unlink()
    (tmp_path / "sweep").mkdir()
    write_json(tmp_path / "sweep" / "sweep.json", {})
    strange = make(tmp_path / "strange", 0.0, 4, alpha=2, first=1000)
    more = [tmp_path / "empty", new.path, old.path, tmp_path / "sweep", strange, tmp_path / "nowhere"]
    omitted = " | ".join(as_json([*paths, *more], tmp_path)["omitted"])
    for words in (
        "empty: not the folder of a run",
        "new: not evaluated yet: amidkd eval",
        "old: evaluated without scores prompt by prompt",
        "sweep: a sweep; its trials are runs: amidkd report --compare",
        "strange: measured on other prompts than a",
        "nowhere: there is no such folder",
    ):
        assert words in omitted
    with pytest.raises(SettingError, match=r"needs two evaluated runs; 1 of 2 .*\n  empty: not the folder"):
        compared([paths[0], tmp_path / "empty"])
    with pytest.raises(SettingError, match="strange: measured on other prompts"):
        compared([paths[0], strange])


def test_tasks_of_the_suite_and_plain_text_are_compared_too(tmp_path: Path) -> None:
    paths = []
    for n, name in enumerate(("a", "b")):
        run = RunFolder(make(tmp_path / name, 0.0, n, alpha=n))
        whole, texts = result(0.3 * n, n), result(0.1 * n, n)
        text = ModelResult(texts.held_out, {"text_nll": texts.scores["nll"]}, None, (), ())
        sets = {"": (result(0.0, n), None), "dolly": (whole, None), "text": (text, None)}
        # A set that only one run has is named and left out.
        write_scores(run.scores_file, {**sets, **({"vicuna": (whole, None)} if n else {})})
        paths.append(run.path)
    found = as_json(paths, tmp_path)
    assert found["prompts"] == {"": 80, "dolly": 80, "text": 80}
    assert "Left out: task vicuna, which a did not measure." in found["notes"]
    gaps = found["sides"][1]["difference"]
    assert {"nll", "dolly.nll", "dolly.exact_match_sampled", "text_nll"} <= set(gaps)
    assert gaps["dolly.nll"]["finding"] == "prompts"
    assert {"dolly.perplexity", "text_perplexity"} <= set(found["sides"][0]["metrics"])
    assert "80 prompts, 80 prompts of dolly and 80 texts" in found["sentence"]
    text = compare_runs(paths, form="md").read_text()
    assert "| dolly: NLL of real text |" in text
    assert "dolly: NLL of real text" in compare_runs(paths).read_text()


def test_the_page_the_markdown_and_the_screen_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(make(tmp_path / "runs" / name, n * 0.4, n, alpha=n)) for n, name in enumerate(("a|b", "c"))]
    for form in ("html", "md", "json"):
        assert main(["report", "--compare", *paths, "--format", form]) == 0
        out = capsys.readouterr().out
        assert str(tmp_path / "runs" / f"comparison.{form}") in out
        assert "c against a|b: worse in NLL of real text" in out
    data = json.loads((tmp_path / "runs" / "comparison.json").read_text())
    text = (tmp_path / "runs" / "comparison.md").read_text()
    page = (tmp_path / "runs" / "comparison.html").read_text()
    gap = data["sides"][1]["difference"]["nll"]
    shown = f"+{gap['value']:.3f}"
    interval = f"{gap['interval'][0]:.3f} to {gap['interval'][1]:.3f}"
    assert f"| NLL of real text | {data['sides'][0]['metrics']['nll']['value']:.3f} |" in text
    assert f"{shown} ({interval}" in text
    assert "a\\|b" in text
    for words in (shown, interval, "over prompts; training seeds unknown", "from c"):
        assert words in page


def test_several_configurations_are_each_held_against_the_first(tmp_path: Path) -> None:
    paths = [make(tmp_path / f"alpha{n}", 0.2 * n, n, alpha=n) for n in range(8)]
    page = compare_runs(paths).read_text()
    assert page.count("<details") >= 7
    assert "data-sort" in page
    found = as_json(paths, tmp_path)
    assert len(found["sides"]) == 8
    assert all(side["difference"] for side in found["sides"][1:])


@pytest.mark.filterwarnings("error")
def test_the_first_bar_of_a_kind_is_named_whichever_metric_has_it() -> None:
    def gap(metric: str, interval: Interval | None) -> Gap:
        verdict = Verdict("noise", "inside the noise")
        return Gap(metric, Estimate(0.1, (), interval), 0.5, 0.5, 9, 9, None, math.nan, verdict)

    (without,) = gap_figures("a", [gap("coverage", None)])
    (second,) = gap_figures("b", [gap("coverage", None), gap("ece", Interval(0.0, 0.2, 0.95))])
    assert "over prompts" not in without.svg
    assert "over prompts" in second.svg


def test_a_pair_in_words_says_how_many_differences_hold() -> None:
    def gap(metric: str, finding: str) -> Gap:
        return Gap(metric, Estimate(0.1), 0.01, 0.01, 9, 9, None, math.nan, Verdict(finding, "worse"))

    gaps = [gap("nll", "holds"), gap("coverage", "seeds differ"), gap("ece", "seeds differ"), gap("text_nll", "noise")]
    other = Side("b", [], {}, {}, {}, gaps)
    assert sentence_of_pair(Side("a", [], {}, {}, {}, []), other) == (
        "b against a: worse in NLL of real text, Coverage and Calibration error; 1 of 4 metrics inside the noise. "
        "Over training seeds, of these differences 1 holds, 2 are inside the noise."
    )
