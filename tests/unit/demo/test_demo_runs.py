"""The demo from end to end at its smallest, through the real trainer and evaluation; and its run files."""

import pytest

from amidkd import demo
from amidkd.config import load
from amidkd.demo.display import COLUMNS
from amidkd.demo.runs import FULL, METHODS, QUICK, run_config
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate
from amidkd.record import RunFolder, read_json_lines
from amidkd.report import write_report


def test_methods_get_equal_effort(tmp_path) -> None:
    configs = {m.key: run_config(m, 1, folder=tmp_path, scale=FULL) for m in METHODS}
    assert list(configs) == ["labels", "texts", "fkl", "amid"]
    for config in configs.values():
        warm = config.student.warm_start
        assert config.training.max_steps + (warm.max_steps if warm else 0) == FULL.steps
        assert config.training.learning_rate == FULL.learning_rate == (warm.learning_rate if warm else 3e-3)
        assert config.data.label_fraction == 0.05
    same = [
        c.model_dump(include={"data": {"train", "generation", "label_seed"}, "evaluation": ...})
        for c in configs.values()
    ]
    assert all(entry == same[0] for entry in same)
    assert configs["labels"].data.unlabelled == "drop"
    assert configs["fkl"].objective.between == "teacher||student"


def test_amid_is_the_default_objective(tmp_path) -> None:
    (amid,) = [m for m in METHODS if m.key == "amid"]
    objective = run_config(amid, 1, folder=tmp_path, scale=FULL).objective
    assert not amid.objective
    described = f"KL(teacher‖assistant), α = {objective.alpha}, λ = {objective.lam}".replace("-", "−")
    assert amid.detail.startswith(described)
    assert (objective.divergence.name, objective.between) == ("kl", "teacher||assistant")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    import contextlib
    import io

    folder, shown = tmp_path_factory.mktemp("demo") / "run", io.StringIO()
    with contextlib.redirect_stdout(shown):
        output = demo.run_demo(folder, quick=True)
    return output, shown.getvalue()


def test_record_holds_every_model_with_its_errors(finished) -> None:
    output, _ = finished
    record = output.record()
    metrics = record["results"]["metrics"]
    assert set(metrics) == {"teacher", *(m.key for m in METHODS)}
    for key, entries in metrics.items():
        for name in COLUMNS:
            if key == "teacher" and name.startswith("kl_"):
                assert name not in entries
                continue
            found = Estimate.from_json(entries[name])
            assert found.error("prompts").n == QUICK.test_rows
            assert (found.error("training seeds") is None) == (key == "teacher")
    assert set(record["results"]["difference from labels"]) == {"texts", "fkl", "amid"}
    assert record["finished"]
    assert record["seconds"] > 0


def test_numbers_are_averages_of_the_runs_records(finished) -> None:
    output, _ = finished
    record = output.record()
    for key, names in record["runs"].items():
        runs = [RunFolder(output.path / name).record()["results"]["evaluation"]["student"]["metrics"] for name in names]
        assert len(runs) == len(QUICK.training_seeds)
        for name in ("exact_match_greedy", "nll", "kl_teacher_student"):
            mean = sum(run[name]["value"] for run in runs) / len(runs)
            assert record["results"]["metrics"][key][name]["value"] == pytest.approx(mean)


def test_each_run_is_a_run_folder(finished) -> None:
    output, _ = finished
    for method in METHODS:
        for seed in QUICK.training_seeds:
            run = RunFolder(output.path / f"{method.key}-seed{seed}")
            config = load(run.path)
            assert run.record()["verb"] == method.verb
            assert config.training.seed == seed
            assert (run.student / "model.safetensors").is_file()
            assert len(read_json_lines(run.samples_file)) == QUICK.test_rows
            done = sum(stage.get("steps", 0) for stage in run.record()["stages"].values())
            assert done == QUICK.steps
    page = write_report(RunFolder(output.path / "amid-seed1"))
    assert page.is_file()


def test_seeds_share_the_teachers_answers(finished) -> None:
    output, _ = finished
    shard = "generated/shard-00000.parquet"
    files = [output.path / f"{key}-seed{seed}" / shard for key in ("texts", "fkl", "amid") for seed in (1, 2)]
    assert {path.read_bytes() for path in files} == {(output.path / "answers" / shard).read_bytes()}


def test_table_and_page_show_what_the_record_holds(finished) -> None:
    output, shown = finished
    words = " ".join(shown.split())
    for name in ("teacher", "labels", "labels + texts", "forward KL", "AMiD", str(output.report_file)):
        assert name.split()[0] in words
    page = output.report_file.read_text(encoding="utf-8")
    nll = output.record()["results"]["metrics"]["amid"]["nll"]["value"]
    assert f"{nll:.3f}" in shown
    assert f"{nll:.3f}" in page
    assert "over the 40 held-out prompts" in words
    assert "amidkd demo" in page


def test_second_call_reuses_the_runs_and_another_size_is_refused(finished) -> None:
    output, _ = finished
    students = sorted(output.path.glob("*-seed*/student/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in students]
    first, took = output.record()["results"]["metrics"], output.record()["training_seconds"]
    again = demo.run_demo(output.path, quick=True)
    assert [path.stat().st_mtime_ns for path in students] == before
    assert again.record()["results"]["metrics"] == first
    assert again.record()["training_seconds"] == took > 0
    with pytest.raises(SettingError, match="holds a demo of another size"):
        demo.run_demo(output.path)
