"""The end of a sweep: best run files that can be run, and the page."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from amidkd.config import RunConfig, dump_yaml, load
from amidkd.errors import SettingError
from amidkd.report.sweep import write_sweep_report
from amidkd.sweep.results import write_best, write_results
from amidkd.sweep.trial import Shared
from sweep_world import trial, write_sweep

A = "objective.alpha"


def sweep_of(config: RunConfig, trials: list[dict[str, Any]], **entries: Any) -> Path:
    return write_sweep(Path(config.output.folder), trials, **{"space": {A: {"choices": [-1.0, 0.5]}}, **entries})


def test_the_best_run_file_is_the_trials_with_an_output_of_its_own(sweep_config) -> None:
    config = sweep_config(sweep={"seeds": [7, 8]})
    folder = sweep_of(config, [trial(0, {A: -1.0}, 1.5), trial(1, {A: 0.5}, 1.25)])
    (path,) = write_best(config)
    assert path == folder / "best.yaml"
    best = load(path)
    assert best.objective.alpha == 0.5
    assert best.objective.lam == config.objective.lam
    assert best.sweep is None
    assert best.training.seed == 7
    assert best.training.resume_from_checkpoint is False
    assert best.output.folder == str(folder / "best")
    assert best.data == config.data
    heading = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert heading[0] == f"# Trial 1 of the sweep {folder.name}: objective.alpha = 0.5."
    assert heading[1] == "# nll: 1.25 ± 0.01 over 400 prompts; minimized."
    assert "Use α = 0.5: NLL of real text 1.250" in heading[2]


def test_a_value_with_line_breaks_stays_in_the_heading(sweep_config) -> None:
    key, template = "data.prompt_template", "<s>\nobjective: {prompt}\n<sep>"
    config = sweep_config(sweep={"space": {key: [template]}})
    write_sweep(Path(config.output.folder), [trial(0, {key: template}, 1.5)], space={key: {"choices": [template]}})
    (path,) = write_best(config)
    assert load(path).data.prompt_template == template
    assert r"<s>\nobjective: {prompt}\n<sep>" in path.read_text(encoding="utf-8").splitlines()[0]


def test_without_a_teacher_the_command_is_sft(sweep_config) -> None:
    key = "training.weight_decay"
    config = sweep_config(teacher=None, sweep={"space": {key: [0.0, 0.1]}})
    folder = write_sweep(Path(config.output.folder), [trial(0, {key: 0.1}, 1.5)], space={key: {"choices": [0.0, 0.1]}})
    (folder / "run.yaml").write_text(dump_yaml(config), encoding="utf-8")
    (path,) = write_best(config)
    assert "Train with it: amidkd sft best.yaml." in path.read_text(encoding="utf-8")
    page = write_sweep_report(folder).read_text(encoding="utf-8")
    assert "<code>amidkd sft " in page
    assert "amidkd distill" not in page


def test_a_front_has_a_file_each_and_an_older_best_goes(sweep_config) -> None:
    config = sweep_config(sweep={"objective": ["nll", "coverage"]})
    goals = [{"metric": "nll", "direction": "minimize"}, {"metric": "coverage", "direction": "maximize"}]
    trials = [trial(n, {A: alpha}, 1.0 + n) for n, alpha in enumerate((-1.0, 0.5))]
    for each in trials:
        each["values"]["coverage"] = 0.5 + 0.1 * each["number"]
    folder = sweep_of(config, trials, objective=goals, best=[0, 1])
    (folder / "best-7.yaml").write_text("old", encoding="utf-8")
    (folder / "best-notes.yaml").write_text("mine", encoding="utf-8")
    paths = write_best(config)
    assert [path.name for path in paths] == ["best-0.yaml", "best-1.yaml"]
    assert [load(path).objective.alpha for path in paths] == [-1.0, 0.5]
    assert sorted(path.name for path in folder.glob("best*.yaml")) == ["best-0.yaml", "best-1.yaml", "best-notes.yaml"]


def test_what_was_made_for_the_trials_serves_the_best_run_too(sweep_config, tmp_path: Path) -> None:
    config = sweep_config(teacher={"kind": "cached"})
    folder = sweep_of(config, [trial(0, {A: -1.0}, 1.5)])
    cache, text = tmp_path / "teacher-cache", tmp_path / "generated"
    text.mkdir()
    (path,) = write_best(config, Shared(cache=cache, text=text))
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["teacher"]["folder"] == str(cache)
    assert (folder / "best" / "generated").resolve() == text


def test_without_a_complete_trial_there_is_a_page_and_no_run_file(sweep_config) -> None:
    config = sweep_config()
    folder = sweep_of(config, [trial(0, {A: -1.0}, None, error="ValueError: no")])
    (folder / "best.yaml").write_text("old", encoding="utf-8")
    found = write_results(config)
    assert found.best == ()
    assert found.page == folder / "report.html"
    assert found.page.is_file()
    assert "nothing to recommend" in found.sentence
    assert not (folder / "best.yaml").exists()


def test_a_folder_without_a_sweep_is_refused(sweep_config) -> None:
    with pytest.raises(SettingError, match=r"holds no sweep\.json"):
        write_results(sweep_config())
