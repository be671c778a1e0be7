"""The page of a sweep: verdicts against hand-made numbers, and what the page says of good, bad and odd sweeps."""

import html
import itertools
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from amidkd.data import Row
from amidkd.errors import SettingError
from amidkd.evaluation.scores import write_scores
from amidkd.evaluation.statistics import Scores
from amidkd.report.sweep import describe_sweep, summary_of_sweep, sweep_of_run, write_sweep_report
from amidkd.report.sweep import noise as noise_module
from amidkd.report.sweep.figures import curve_figure, error_kind, front_figure, front_of
from amidkd.report.sweep.importance import importance_of
from amidkd.report.sweep.maps import cells_of, map_figure, scatter_figure
from amidkd.report.sweep.noise import standing, t_quantile
from amidkd.report.sweep.record import metric_called, read_sweep, value_text
from sweep_world import ALPHAS, LAMBDAS, grid_sweep, nll_at, trial, write_sweep

SVG = "{http://www.w3.org/2000/svg}"
A, L = "objective.alpha", "objective.lam"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grid_sweep(tmp_path_factory.mktemp("sweeps") / "alpha")


def along(folder: Path, values: dict[float, float], **entries) -> Path:
    """A sweep of α alone, an NLL for each."""
    trials = [trial(number, {A: alpha}, nll) for number, (alpha, nll) in enumerate(values.items())]
    return write_sweep(folder, trials, **{"space": {A: {"choices": list(values)}}, **entries})


def text_of(page: Path) -> str:
    return re.sub(
        r"\s+", " ", re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page.read_text("utf-8"), flags=re.DOTALL)
    )


# Reading


def test_what_is_no_sweep_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"holds no sweep\.json"):
        write_sweep_report(tmp_path)
    (tmp_path / "sweep.json").write_text('{"name": "x"', encoding="utf-8")
    with pytest.raises(SettingError, match=r"sweep\.json is not what amidkd sweep writes"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"name": "x"}', encoding="utf-8")
    with pytest.raises(SettingError, match="KeyError"):
        read_sweep(tmp_path)


def test_values_read_as_people_write_them() -> None:
    found = [
        value_text(v) for v in (-0.5, -3, 1e-5, True, None, "teacher||assistant", {"name": "amari", "order": -0.5})
    ]
    assert found == ["−0.5", "−3", "1e−05", "true", "none", "teacher‖assistant", "amari (order −0.5)"]


def test_a_metric_of_the_suite_is_named_with_its_task() -> None:
    assert metric_called("dolly.rouge_l_sampled").label == "dolly: ROUGE-L, sampled"
    assert metric_called("dolly.rouge_l_sampled").unit == "share"
    assert metric_called("pass_at_5").label.lower().replace("@", " at ") == "pass at 5"


# The noise


@pytest.mark.parametrize(
    ("probability", "freedom", "expected"),
    # Tables of Student's t.
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 10, 2.22814), (0.995, 30, 2.74999), (0.9995, 5, 6.86883)],
)
def test_quantiles_of_students_t(probability: float, freedom: int, expected: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(expected, rel=1e-5)


def seeded(folder: Path, table: list[list[float]]) -> Path:
    """A sweep of α with an NLL for each trial and training seed."""
    grid = [
        trial(
            number,
            {A: float(number)},
            float(np.mean(row)),
            runs=[{"seed": s, "folder": f"trials/{number:04d}/seed-{s}"} for s in range(len(row))],
        )
        for number, row in enumerate(table)
    ]
    for number, row in enumerate(table):
        for seed, value in enumerate(row):
            path = folder / f"trials/{number:04d}/seed-{seed}"
            path.mkdir(parents=True)
            entry = {"student": {"metrics": {"nll": {"value": value, "errors": []}}}}
            (path / "record.json").write_text(json.dumps({"results": {"evaluation": entry}}), encoding="utf-8")
    space = {A: {"choices": [float(n) for n in range(len(table))]}}
    return write_sweep(folder, grid, space=space, seeds=list(range(len(table[0]))))


def test_noise_over_seeds_by_hand(tmp_path: Path) -> None:
    # Seed 1 is worse than seed 0 by 0.1 in every trial: that part is no noise between trials.
    sweep = read_sweep(seeded(tmp_path / "s", [[1.00, 1.10], [1.02, 1.16], [1.50, 1.60], [2.00, 2.40]]))
    found = standing(sweep, sweep.objectives[0])
    assert found is not None
    assert (found.best.number, found.over, found.units, found.paired) == (0, "training seeds", 2, True)
    # The better half is trials 0 and 1: residuals ±0.01, one degree of freedom, so s² = 4 · 0.01² and the error of a
    # difference of two means is sqrt(2 s² / 2) = 0.02; three comparisons.
    margin = t_quantile(1 - 0.025 / 3, 1) * 0.02
    by_number = {each.number: each for each in found.comparisons}
    assert by_number[1].difference.value == pytest.approx(0.04)
    assert by_number[1].margin == pytest.approx(margin)
    assert by_number[1].inside
    assert by_number[2].margin == pytest.approx(margin)
    assert by_number[2].inside == (margin >= 0.5)
    # Trial 3 spreads more by itself: differences 1.0 and 1.3, of error 0.15.
    assert by_number[3].margin == pytest.approx(margin / 0.02 * 0.15)


def test_the_truly_best_one_is_rarely_ruled_out(tmp_path: Path, monkeypatch) -> None:
    sweep = read_sweep(seeded(tmp_path / "s", [[1.0, 1.0, 1.0]] * 12))
    draws, ruled_out, kept = np.random.default_rng(0), 0, []
    for _ in range(300):
        # Trial 0 is as good as the others, which gives luck the most to choose from; the last one is worse by 5 σ.
        table = 1 + 0.01 * draws.standard_normal((12, 3))
        table[11] += 0.05
        rows = iter(table)
        monkeypatch.setattr(noise_module, "seed_values", lambda *_, rows=rows: dict(enumerate(next(rows))))
        found = standing(sweep, sweep.objectives[0])
        assert found is not None
        beside = {each.number: each.inside for each in found.comparisons}
        ruled_out += beside.get(0) is False
        kept.append(bool(beside[11]))
    assert ruled_out / 300 < 0.05
    assert np.mean(kept) < 0.2, "what is worse by far is seen"


def test_what_is_better_by_far_stands_out(tmp_path: Path) -> None:
    folder = seeded(tmp_path / "s", [[1.0, 1.01, 0.99], [1.5, 1.51, 1.52], [1.6, 1.62, 1.61]])
    found = standing(read_sweep(folder), read_sweep(folder).objectives[0])
    assert found is not None
    assert found.alike() == []
    assert "It stands out: all 2 others are worse" in describe_sweep(folder)


def keep_scores(path: Path, sums: np.ndarray, prompts: int) -> None:
    """``scores.npz`` of a run whose student has these NLLs, each over one token."""
    rows = [Row(n, "x", f"p{n}", "c", None, None, (), True, None) for n in range(prompts)]
    held_out = SimpleNamespace(rows=rows, references=[("c",)] * prompts, asked=tuple(range(prompts)))
    result = SimpleNamespace(held_out=held_out, scores={"nll": Scores(sums, np.ones_like(sums))})
    path.mkdir(parents=True)
    write_scores(path / "scores.npz", {"": (result, None)})  # type: ignore[dict-item]


def test_prompts_are_paired_where_their_scores_were_kept(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    hard = draws.exponential(1.0, 200)
    # Prompts differ much, models little: only the pairing shows that the second is worse.
    own = [hard, hard + 0.02 + 0.01 * draws.standard_normal(200)]
    values = {float(n): float(s.mean()) for n, s in enumerate(own)}
    folder = along(tmp_path / "s", values)
    before = standing(read_sweep(folder), read_sweep(folder).objectives[0])
    assert before is not None
    assert (before.over, before.paired) == ("prompts", False)
    assert before.comparisons[0].margin == pytest.approx(1.95996 * 0.01 * math.sqrt(2), rel=1e-4)
    for number, sums in enumerate(own):
        keep_scores(folder / f"trials/{number:04d}/seed-42", sums, 200)
    found = standing(read_sweep(folder), read_sweep(folder).objectives[0])
    assert found is not None
    assert (found.over, found.paired, found.units) == ("prompts", True, 200)
    apart = own[1] - own[0]
    assert found.comparisons[0].difference.value == pytest.approx(apart.mean())
    assert found.comparisons[0].margin == pytest.approx(1.95996 * apart.std(ddof=1) / math.sqrt(200), rel=1e-4)
    assert found.comparisons[0].inside is False


def test_without_errors_nothing_is_judged(tmp_path: Path) -> None:
    trials = [trial(n, {A: float(n)}, 1.0 + n, metrics={}) for n in range(3)]
    folder = write_sweep(tmp_path / "s", trials)
    assert "Whether others do as well is not known" in describe_sweep(folder)
    found = standing(read_sweep(folder), read_sweep(folder).objectives[0])
    assert found is not None
    assert [each.inside for each in found.comparisons] == [None, None]


# Pictures


def test_cells_say_what_became_of_every_place(grid: Path) -> None:
    sweep = read_sweep(grid)
    cells = cells_of(sweep, A, L, sweep.objectives[0])
    assert len(cells) == len(ALPHAS) * len(LAMBDAS)
    states = {place: cell.state for place, cell in cells.items() if cell.state != "complete"}
    assert states == {
        ("−5", "0.3"): "failed",
        ("−1", "0.2"): "failed",
        ("0", "0.05"): "pruned",
        ("1", "0.3"): "running",
        ("1", "0.5"): "missing",
    }
    for (alpha, lam), cell in cells.items():
        if cell.state == "complete":
            assert cell.trial is not None
            expected = nll_at(float(alpha.replace("−", "-")), float(lam))
            assert cell.trial.values["nll"] == pytest.approx(expected, abs=0.03)


def test_a_map_shows_every_number_and_says_more_to_the_pointer(grid: Path) -> None:
    sweep = read_sweep(grid)
    best = sweep.trial(sweep.best[0])
    picture = map_figure("m", sweep, A, L, sweep.objectives[0], alike=[21], mark=0)
    root = ET.fromstring(picture.svg)
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert f"{best.values['nll']:.3f}" in texts
    assert f"≈ {sweep.trial(21).values['nll']:.3f}" in texts
    assert texts.count("failed") == 2
    assert {"pruned", "running", "–", "−0.5", "0.05"} <= set(texts)
    tips = [each.text for each in root.iter(f"{SVG}title")]
    assert len(tips) == 40
    assert "α 1, λ 0.5\nnot tried" in tips
    assert any(tip and tip.startswith("α −5, λ 0.05\ntrial 0: NLL of real text 1.5") for tip in tips)
    assert any(tip and "inside the noise" in tip for tip in tips)
    assert "in orange, this run" in picture.caption
    assert not re.search(r"#a100\d\d", picture.svg)


def test_other_keys_are_at_their_best_in_a_cell(tmp_path: Path) -> None:
    trials = [
        trial(n, {A: a, L: b, "training.learning_rate": r}, 1.0 + a + b + r)
        for n, (a, b, r) in enumerate([(0.0, 0.1, 0.5), (0.0, 0.1, 0.2), (1.0, 0.1, 0.2), (0.0, 0.3, 0.2)])
    ]
    space = {A: {"choices": [0.0, 1.0]}, L: {"choices": [0.1, 0.3]}, "training.learning_rate": {"choices": [0.5, 0.2]}}
    sweep = read_sweep(write_sweep(tmp_path / "s", trials, space=space))
    cell = cells_of(sweep, A, L, sweep.objectives[0])["0", "0.1"]
    assert cell.trial is not None
    assert (cell.trial.number, cell.count) == (1, 2)
    assert "best over the other keys" in map_figure("m", sweep, A, L, sweep.objectives[0]).caption


def test_one_hopeless_trial_does_not_bleach_the_rest(tmp_path: Path) -> None:
    nlls = [1.0, 1.1, 1.2, 1.3, 50.0]
    trials = [trial(n, {A: float(n % 3), L: float(n // 3)}, nll) for n, nll in enumerate(nlls)]
    space = {A: {"choices": [0.0, 1.0, 2.0]}, L: {"choices": [0.0, 1.0]}}
    sweep = read_sweep(write_sweep(tmp_path / "s", trials, space=space))
    svg = map_figure("m", sweep, A, L, sweep.objectives[0]).svg
    strengths = sorted(float(value) for value in re.findall(r"var\(--series-1\); opacity: ([\d.]+)", svg))
    assert len(strengths) == 5
    assert strengths[0] == pytest.approx(0.06)
    assert strengths[-1] == pytest.approx(0.55)
    assert strengths[-1] - strengths[1] > 0.1


def test_curves_have_a_line_a_value_and_errors_over_seeds(grid: Path) -> None:
    sweep = read_sweep(grid)
    assert error_kind(sweep.complete(), "nll") == "training seeds"
    picture = curve_figure("c", sweep, A, "nll", L)
    root = ET.fromstring(picture.svg)
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert {f"λ {value_text(lam)}" for lam in LAMBDAS} <= set(texts)
    assert picture.caption == "Bars: ± one standard error over training seeds."
    assert len(list(root.iter(f"{SVG}title"))) == len(sweep.complete())


def test_one_seed_has_its_errors_over_prompts_and_says_so(tmp_path: Path) -> None:
    sweep = read_sweep(along(tmp_path / "s", {-1.0: 1.0, 0.0: 1.1, 1.0: 1.2}))
    assert "over prompts" in curve_figure("c", sweep, A, "nll", None).caption
    assert "Another training seed may change that" in describe_sweep(sweep.folder)
    assert "another seed may move a result" in " ".join(summary_of_sweep(sweep.folder)["notes"])


def test_ranges_are_points_and_no_grid(tmp_path: Path) -> None:
    draws = np.random.default_rng(1)
    trials = [trial(n, {A: float(a), L: float(b)}, nll_at(a, b)) for n, (a, b) in enumerate(draws.random((20, 2)))]
    space = {A: {"low": 0.0, "high": 1.0}, L: {"low": 0.001, "high": 1.0, "log": True}}
    folder = write_sweep(tmp_path / "s", trials, space=space, sampler={"kind": "tpe", "seed": 0})
    sweep = read_sweep(folder)
    assert len(list(ET.fromstring(scatter_figure("s", sweep, A, L, sweep.objectives[0]).svg).iter(f"{SVG}title"))) == 20
    # Nothing is drawn between points that were scattered: one path a marker, none that joins them.
    assert "stroke-dasharray" not in curve_figure("c", sweep, A, "nll", None).svg
    assert "Ringed: the best" in text_of(write_sweep_report(folder))


def test_the_front_by_hand(tmp_path: Path) -> None:
    points = [(1.0, 0.5), (2.0, 0.9), (1.5, 0.5), (3.0, 0.9), (2.5, 0.95), (0.9, 0.1)]
    trials = [
        trial(
            n, {A: float(n)}, nll, metrics={"nll": {"value": nll, "errors": []}, "coverage": {"value": c, "errors": []}}
        )
        for n, (nll, c) in enumerate(points)
    ]
    sweep = read_sweep(write_sweep(tmp_path / "s", trials))
    front = front_of(sweep.complete(), metric_called("nll"), metric_called("coverage"))
    assert [each.number for each in front] == [5, 0, 1, 4]
    turned = [{"metric": "nll", "direction": "minimize"}, {"metric": "coverage", "direction": "minimize"}]
    sweep = read_sweep(write_sweep(tmp_path / "t", trials, objective=turned))
    figure = front_figure("f", sweep, "nll", "coverage", "")
    assert figure is not None
    assert figure.caption == "Trial 5 is the best in both.", "-coverage asks for little of it"
    assert "lower is better" in figure.svg
    assert "higher is better" not in figure.svg


def test_names_on_a_crowded_front_lie_on_no_other_name_and_no_point(tmp_path: Path) -> None:
    # Close to each other by a far one, and each beside the next one's name.
    trials = [trial(n, {A: 0.3 * n}, 1.05 - 0.02 * n) for n in range(9)]
    sweep = read_sweep(
        write_sweep(tmp_path / "s", [*trials, trial(9, {A: 5.0}, 0.5)], space={A: {"low": 0, "high": 5}})
    )
    figure = front_figure("f", sweep, "nll", "coverage", "")
    assert figure is not None
    root = ET.fromstring(figure.svg)
    dots = [
        (float(use.get("x", "")), float(use.get("y", "")))
        for group in root.iter(f"{SVG}g")
        if "point-" in group.get("id", "")
        for use in group.iter(f"{SVG}use")
    ]
    names = [text for text in root.iter(f"{SVG}text") if "7.5px" in text.get("style", "")]
    boxes = []
    for name in names:
        x, y, wide = float(name.get("x", "")), float(name.get("y", "")), 3.5 * len("".join(name.itertext()))
        left = x - wide if "anchor: end" in name.get("style", "") else x
        boxes.append((left, y - 5, left + wide, y))
    assert len(dots) == 10
    assert 2 <= len(boxes) < 10
    for left, top, right, bottom in boxes:
        assert not any(left <= x <= right and top <= y <= bottom for x, y in dots)
    for one, two in itertools.combinations(boxes, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


def test_values_of_any_length_and_with_any_sign_fit_their_pictures(tmp_path: Path, recwarn) -> None:
    key = "data.prompt_template"
    templates = [r"<s> $\frac$ {prompt}", "<s>\n" + "a long question to answer: " * 8 + "{prompt}"]
    trials = [
        trial(n, {A: alpha, key: template}, 1.0 + n)
        for n, (alpha, template) in enumerate((a, t) for a in (-1.0, 0.5) for t in templates)
    ]
    space = {A: {"choices": [-1.0, 0.5]}, key: {"choices": templates}}
    goals = [{"metric": "nll", "direction": "minimize"}, {"metric": "coverage", "direction": "maximize"}]
    page = write_sweep_report(write_sweep(tmp_path / "s", trials, space=space, objective=goals))
    assert r"<s> $\frac$ {prompt}" in html.unescape(page.read_text(encoding="utf-8"))
    assert [str(each.message) for each in recwarn if "layout" in str(each.message)] == []


# Importances


def test_alpha_explains_what_it_made(grid: Path) -> None:
    sweep = read_sweep(grid)
    found = importance_of(sweep, sweep.objectives[0])
    assert list(found.shares) == [A, L]
    assert found.shares[A] > 0.8
    assert found.shares[L] < 0.15


def test_a_conditional_key_is_measured_among_the_trials_that_have_it(tmp_path: Path) -> None:
    trials = []
    for between in ("teacher||assistant", "teacher||student"):
        for alpha in ALPHAS if "assistant" in between else [None] * 8:
            for seed in (1, 2):
                params = {"objective.between": between, "training.warmup_steps": seed}
                params |= {} if alpha is None else {A: alpha}
                trials.append(trial(len(trials), params, 1.0 if alpha is None else nll_at(alpha, 0.2)))
    space = {
        "objective.between": {"choices": ["teacher||assistant", "teacher||student"]},
        "training.warmup_steps": {"choices": [1, 2]},
        A: {"choices": ALPHAS, "when": {"objective.between": ["teacher||assistant"]}},
    }
    sweep = read_sweep(write_sweep(tmp_path / "s", trials, space=space))
    found = importance_of(sweep, sweep.objectives[0])
    assert found.shares[A] > 0.9
    assert found.shares["objective.between"] > 0.5
    assert found.shares["training.warmup_steps"] < 0.1
    assert "α: among the 16 of 32 trials that have it." in found.notes
    text = text_of(write_sweep_report(sweep.folder))
    assert "by α and between" in text


def test_what_cannot_be_said_is_said(tmp_path: Path) -> None:
    one = read_sweep(along(tmp_path / "one", dict.fromkeys(ALPHAS, 1.0)))
    assert importance_of(one, one.objectives[0]).notes == (
        "Importances compare keys; only α varies among the complete trials.",
    )
    few = [trial(n, {A: float(n), L: float(n)}, 1.0 + n) for n in range(4)]
    sweep = read_sweep(write_sweep(tmp_path / "few", few))
    assert importance_of(sweep, sweep.objectives[0]).notes == (
        "Importances need at least 8 complete trials; there are 4.",
    )


# The page


def test_the_page_says_what_to_use_and_what_is_as_good(grid: Path) -> None:
    sweep = read_sweep(grid)
    best = sweep.trial(sweep.best[0])
    (grid / "best.yaml").write_text("x", encoding="utf-8")
    text = text_of(write_sweep_report(grid))
    assert "35 settings of α × λ tried, 3 training seeds each (1 pruned, 2 failed, 1 running)." in text
    assert f"Use α = {value_text(best.params[A])}, λ = {value_text(best.params[L])}: NLL of real text 1.2" in text
    assert re.search(
        r"\d+ others do as well as far as the noise over training seeds lets one see: α from −\d\S* to", text
    )
    assert "best.yaml trains with α =" in text
    assert "2 × LossError: the loss is not finite at step 12" in text
    assert "trial 3: α = −5, λ = 0.3 ( trials/0003/error.txt )" in text
    assert "training time of all trials" in text
    page = write_sweep_report(grid).read_text("utf-8")
    assert page.count('data-filter="Filter trials"') == 2
    every = re.findall(r'\sid="([^"]+)"', page)
    assert len(every) == len(set(every))


def test_several_objectives_have_a_front_and_no_single_winner(tmp_path: Path) -> None:
    trials = []
    for n, alpha in enumerate(ALPHAS):
        entry = trial(n, {A: alpha}, nll_at(alpha, 0.2))
        entry["values"]["teacher_nll_of_samples"] = entry["metrics"]["teacher_nll_of_samples"]["value"]
        trials.append(entry)
    goals = [{"metric": name, "direction": "minimize"} for name in ("nll", "teacher_nll_of_samples")]
    folder = write_sweep(tmp_path / "s", trials, objective=goals, best=[3, 4, 5, 6, 7], space={A: {"choices": ALPHAS}})
    text = text_of(write_sweep_report(folder))
    assert "5 of them are on the Pareto front of NLL of real text and Teacher's NLL of samples" in text.replace(
        "&#39;", "'"
    )
    assert "α = −1 is best in NLL of real text (1.200)" in text
    # α from −1 to 1: below that both get worse.
    assert "Joined: the 5 trials" in text


@pytest.mark.parametrize("state", ["none", "failed", "infinite", "one"])
def test_odd_sweeps_have_a_page_too(tmp_path: Path, state: str) -> None:
    trials = {
        "none": [],
        "failed": [trial(0, {A: 0.0}, None, error="ValueError: <script>alert(1)</script>")],
        "infinite": [trial(0, {A: 0.0}, None, state="complete", values={"nll": math.nan})],
        "one": [trial(0, {A: 0.0}, 1.0)],
    }[state]
    if state == "infinite":
        trials[0]["values"] = {}
    page = write_sweep_report(write_sweep(tmp_path / "s", trials, space={A: {"choices": [0.0, 1.0]}}))
    text = text_of(page)
    expected = "Use α = 0: NLL of real text 1.000" if state == "one" else "nothing to recommend yet"
    assert expected in text
    assert "<script>alert" not in page.read_text("utf-8")
    if state == "none":
        assert "No trial has begun" in text
    if state == "infinite":
        assert "1 without a finite result" in text


def test_words_and_sections_are_keys_too(tmp_path: Path) -> None:
    choices = ["kl", {"name": "alpha_beta", "a": 0.2, "b": 0.7}]
    trials = [
        trial(n, {"objective.divergence": c, "objective.between": b}, 1.0 + 0.1 * n)
        for n, (c, b) in enumerate((c, b) for c in choices for b in ("teacher||assistant", "student||assistant"))
    ]
    space = {
        "objective.divergence": {"choices": choices},
        "objective.between": {"choices": ["teacher||assistant", "student||assistant"]},
    }
    text = text_of(write_sweep_report(write_sweep(tmp_path / "s", trials, space=space)))
    assert "Use divergence = kl, between = teacher‖assistant" in text
    assert "alpha_beta (a 0.2, b 0.7)" in text


def test_a_run_knows_its_place_in_its_sweep(grid: Path, tmp_path: Path) -> None:
    found = sweep_of_run(grid / "trials" / "0007" / "seed-2")
    assert found is not None
    sentence, figures = found
    assert sentence.startswith("This run is trial 7 of the sweep alpha. Use α =")
    assert [figure.title for figure in figures] == ["NLL of real text by α and λ"]
    assert sweep_of_run(tmp_path / "trials" / "0007" / "seed-2") is None
    assert sweep_of_run(grid) is None


def test_the_summary_is_plain_data(grid: Path) -> None:
    found = json.loads(json.dumps(summary_of_sweep(grid), allow_nan=False))
    goal = found["objectives"][0]
    assert goal["noise"] == {"over": "training seeds", "paired": True, "units": 3}
    verdicts = {each["verdict"] for each in goal["trials"]}
    assert verdicts == {"inside the noise", "worse"}
    for each in goal["trials"]:
        assert (abs(each["difference"]["value"]) <= each["margin"]) == (each["verdict"] == "inside the noise")
