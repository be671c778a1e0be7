"""The run file: paths, overrides, and one clear message for each thing that is wrong."""

import re
from pathlib import Path

import pytest
import yaml

from amidkd.config import RunConfig, dump_yaml, load, parse
from amidkd.errors import SettingError

MINIMAL = {
    "student": {"kind": "pretrained", "model": "org/student"},
    "teacher": {"kind": "live", "model": "org/teacher"},
    "data": {"train": "data/rows.jsonl"},
    "output": {"folder": "out"},
}


def with_(**sections: object) -> dict:
    return {**MINIMAL, **sections}


def write(folder: Path, tree: dict) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def complaint(tree: dict) -> str:
    with pytest.raises(SettingError) as caught:
        parse(tree)
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"objective": {"lam": 1.2}}, r"objective\.lam: .*\[0, 1\].*1\.2"),
        ({"objective": {"lam": {"kind": "linear", "start": 0, "end": 2}}}, r"objective\.lam: .*2\.0"),
        ({"objective": {"alpha": float("nan")}}, r"objective\.alpha: must be a finite number; got nan"),
        ({"objective": {"alpha": float("inf")}}, r"objective\.alpha: must be a finite number; got inf"),
        ({"objective": {"alhpa": 1}}, r"objective\.alhpa: unknown key; did you mean 'alpha'\?"),
        ({"objective": {"detach_assistant": True}}, r"no gradient .*detach_assistant: false"),
        (
            {"objective": {"divergence": "alpha_beta"}},
            r"needs 'a': write \{name: alpha_beta, a: 0\.2, b: 0\.7\}",
        ),
        ({"objective": {"divergence": {"name": "kl", "order": 1}}}, r"'kl' has no parameter 'order'"),
        (
            {"objective": {"divergence": "kll"}},
            r"objective\.divergence\.name: .*got 'kll'; did you mean 'kl'",
        ),
        ({"objective": {"between": "teacher|student"}}, r"objective\.between: .*'teacher\|\|student'"),
        (
            {"objective": {"alpha": {"kind": "linaer", "start": 0}}},
            r"objective\.alpha: needs `kind:`, one of .*linear",
        ),
        (
            {"objective": {"alpha": {"kind": "linear", "start": 0, "end": 1, "beginn": 0}}},
            r"alpha\.beginn: unknown key",
        ),
        (
            {"objective": {"terms": [{"weight": 1, "lamb": 0.2}]}},
            r"terms\.0\.lamb: unknown key; did you mean 'lam'",
        ),
        ({"objective": {"alpha": 0, "terms": [{"weight": 1}]}}, r"alpha beside `terms` would have no effect"),
        ({"objective": {"temperature": 0}}, r"objective\.temperature: .*greater than 0"),
        (
            {"student": {"kind": "pretraned", "model": "x"}},
            r"student: needs `kind:`, one of .*pretrained.*got 'pretraned'",
        ),
        ({"student": {"kind": "depth_pruned"}}, r"student\.layers: missing; How many"),
        (
            {"student": {"model": "x", "warm_start": {"epoch": 1}}},
            r"warm_start\.epoch: .*did you mean 'epochs'",
        ),
        (
            {"teacher": None, "student": {"kind": "depth_pruned", "layers": 2}},
            r"takes its layers from a teacher",
        ),
        ({"dataa": {}}, r"dataa: unknown key; did you mean 'data'"),
        ({"training": {"learning_rate": -1}}, r"training\.learning_rate: .*greater than 0; got -1"),
        (
            {"data": {"train": "x", "label_fraction": 1.5}},
            r"data\.label_fraction: .*less than or equal to 1; got 1\.5",
        ),
    ],
)
def test_bad_setting_names_key_value_and_fix(sections: dict, expected: str) -> None:
    message = complaint(with_(**sections))
    assert re.search(expected, message), message
    assert len(message.splitlines()) == 2, f"one complaint for one mistake:\n{message}"


def test_every_mistake_is_listed_at_once() -> None:
    message = complaint(with_(objective={"lam": 2, "alhpa": 0}, training={"seed": -1}))
    assert len(message.splitlines()) == 4


def test_missing_section_is_named() -> None:
    assert "data: missing" in complaint({k: v for k, v in MINIMAL.items() if k != "data"})


def test_paths_of_the_file_are_relative_to_it_and_overrides_to_the_working_directory(tmp_path, monkeypatch) -> None:
    (tmp_path / "recipes" / "data").mkdir(parents=True)
    (tmp_path / "recipes" / "data" / "rows.jsonl").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "teacher").mkdir()
    path = write(tmp_path / "recipes", MINIMAL)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(path, ["teacher.model=teacher", "data.validation=held.jsonl"])
    assert config.data.train == str(tmp_path / "recipes/data/rows.jsonl")
    assert config.output.folder == str(tmp_path / "recipes/out")
    assert config.teacher.model == str(tmp_path / "elsewhere/teacher")
    assert config.data.validation == str(tmp_path / "elsewhere/held.jsonl")
    assert config.student.model == "org/student", "a name that is no path stays a hub name"
    assert load(path, ["output=other"]).output.folder == str(tmp_path / "elsewhere/other")


def test_short_forms_of_sections(tmp_path) -> None:
    (tmp_path / "models").mkdir()
    tree = {"student": "models", "teacher": "org/teacher", "data": {"train": "org/rows"}, "output": "out"}
    config = load(write(tmp_path, tree))
    assert config.student.model == str(tmp_path / "models")
    assert (config.teacher.kind, config.teacher.model) == ("live", "org/teacher")
    assert config.output.folder == str(tmp_path / "out")


def test_overrides_reach_into_sections_that_the_file_does_not_have(tmp_path) -> None:
    config = load(
        write(tmp_path, MINIMAL),
        [
            "objective.alpha=-3",
            "training.learning_rate=1e-4",
            "objective.divergence={name: alpha_beta, a: 0.2, b: 0.7}",
        ],
    )
    assert config.objective.alpha == -3
    assert config.training.learning_rate == 1e-4
    assert config.objective.divergence.parameters == {"a": 0.2, "b": 0.7}


def test_overriding_one_key_of_a_section_keeps_its_others(tmp_path) -> None:
    tree = with_(objective={"divergence": "kl", "alpha": -1})
    config = load(write(tmp_path, tree), ["objective.lam=0.3"])
    assert (config.objective.alpha, config.objective.lam) == (-1, 0.3)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("objective.alpha", "not of the form section.key=value"),
        ("objectiv=1", "did you mean 'objective'"),
        ("objective.alpha=[", "not valid YAML"),
        ("objective.alpha.start.x=1", "alpha"),
    ],
)
def test_bad_override(tmp_path, override: str, expected: str) -> None:
    path = write(tmp_path, with_(objective={"alpha": 1}))
    with pytest.raises(SettingError, match=expected):
        load(path, [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "not valid YAML"),
        ("- a\n- b", "must hold sections"),
        ("", "must hold sections"),
        ("data: {train: a, train: b}", "given twice: train"),
    ],
)
def test_bad_yaml(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingError, match=expected):
        load(path)


def test_missing_file_suggests_a_near_one(tmp_path) -> None:
    write(tmp_path, MINIMAL)
    with pytest.raises(SettingError, match=r"no run file at .*did you mean .*run\.yaml"):
        load(tmp_path / "runn.yaml")


def test_numbers_with_an_exponent_are_numbers(tmp_path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "student: a\nteacher: b\ndata: {train: c}\noutput: d\ntraining: {learning_rate: 5e-5, adam_epsilon: 1E-8}\n"
    )
    config = load(path)
    assert config.training.learning_rate == 5e-5
    assert config.training.model_extra == {"adam_epsilon": 1e-8}


@pytest.mark.parametrize(
    "objective",
    [
        {},
        {
            "divergence": {"name": "amari", "order": 0.3},
            "alpha": {"kind": "piecewise", "points": [[0, 1], [1, -3]]},
        },
        {"terms": [{"weight": 0.3}, {"weight": 0.7, "between": "student||assistant", "alpha": -1}]},
        {"between": "assistant||student", "alpha": 1, "lam": {"kind": "adaptive"}, "detach_assistant": True},
    ],
)
def test_resolved_file_reads_back_as_the_same_run(tmp_path, objective: dict) -> None:
    config = parse(with_(objective=objective, training={"adam_beta2": 0.95}))
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(config))
    again = load(path)
    assert isinstance(again, RunConfig)
    assert again.objective == config.objective
    assert again.training == config.training


def test_a_teacher_behind_a_server_is_not_given_weights() -> None:
    tree = {
        "student": "s",
        "teacher": "t",
        "data": {"train": "d", "generation": {"engine": {"kind": "vllm"}}},
        "output": "o",
    }
    with pytest.raises(SettingError, match=r"data.generation: engine.weight_push is 'disk'.*weight_push: none"):
        parse(tree)
    tree["data"]["generation"]["engine"]["weight_push"] = "none"
    parse(tree)


def test_an_override_reaches_a_key_of_the_sweeps_space(tmp_path) -> None:
    path = write(tmp_path, with_(sweep={"space": {"objective.alpha": [-1, 0]}, "sampler": "grid"}))
    found = load(path, ["sweep.space.objective.lam=[0.1, 0.3]"]).sweep
    assert found is not None
    assert {key: entry.choices for key, entry in found.space.items()} == {
        "objective.alpha": [-1, 0],
        "objective.lam": [0.1, 0.3],
    }
    with pytest.raises(SettingError, match=r"sweep\.space\.objective\.alpha: an empty range") as caught:
        load(path, ["sweep.space.objective.alpha={low: 2, high: 1}"])
    assert "tagged-union" not in str(caught.value)
