"""``evaluate_run``: from a run file to the record and the samples."""

import json
from pathlib import Path

import pytest

from amidkd.config import parse
from amidkd.errors import SettingError
from amidkd.evaluation import Estimate, TeacherResults, evaluate_run, print_evaluation
from amidkd.evaluation.text import exact_match
from amidkd.record import RunFolder, read_json_lines, write_json_lines


@pytest.fixture
def run(world, saved_world: Path, tmp_path: Path):
    """A run file's tree and its folder, before training."""
    write_json_lines(
        tmp_path / "valid.jsonl",
        [{"prompt": row.prompt, "completion": row.completion, "references": ["red cat"]} for row in world.rows],
    )
    tree = {
        "student": {"model": str(saved_world / "student"), "dtype": "auto"},
        "teacher": str(saved_world / "teacher"),
        "data": {
            "train": str(tmp_path / "valid.jsonl"),
            "validation": str(tmp_path / "valid.jsonl"),
            "prompt_template": "<s> {prompt} <sep>",
        },
        "evaluation": {"sampling_seeds": [1, 2], "max_new_tokens": 5, "samples_kept": 4, "batch_size": 3},
        "output": str(tmp_path / "run"),
    }
    return tree, RunFolder(tmp_path / "run")


def changed(tree: dict, section: str, **settings):
    return parse({**tree, section: {**tree[section], **settings}})


def test_record_and_samples_hold_what_was_measured(run, world) -> None:
    tree, folder = run
    folder.path.mkdir()
    folder.update_record(results={"training": {"kept": True}})
    entry = evaluate_run(parse(tree), folder)
    record = folder.record()["results"]
    assert record["training"] == {"kept": True}
    assert record["evaluation"] == json.loads(json.dumps(entry))
    assert entry["data"] == {
        "file": tree["data"]["validation"],
        "rows": 11,
        "rows_with_completion": 11,
        "supervised_tokens": sum(len(row.completion.split()) + 1 for row in world.rows),
        "rows_dropped": 0,
        "rows_truncated": 0,
        "prompts_at_limit": 0,
    }
    assert entry["settings"]["max_new_tokens"] == 5
    assert entry["missing"] == []
    assert entry["student"]["parameters"] == sum(p.numel() for p in world.student.parameters())
    student, teacher, gap = (entry[side]["metrics"] for side in ("student", "teacher", "difference"))
    assert "acceptance" in student
    assert "acceptance" not in teacher
    for name, shown in gap.items():
        ours, theirs = (Estimate.from_json(side[name]).value for side in (student, teacher))
        assert Estimate.from_json(shown).value == pytest.approx(ours - theirs, abs=1e-12)

    samples = read_json_lines(folder.samples_file)
    assert [sample["prompt"] for sample in samples] == [row.prompt for row in world.rows[:4]]
    for sample, row in zip(samples, world.rows, strict=False):
        assert sample["references"] == [row.completion, "red cat"]
        assert set(sample["answers"]) == {"teacher, greedy", "student, greedy", "student, sampled"}
        assert sample["kl_teacher_student"] > 0


def test_exact_match_of_the_record_is_that_of_the_samples(run) -> None:
    tree, folder = run
    entry = evaluate_run(changed(tree, "evaluation", samples_kept=50), folder)
    samples = read_json_lines(folder.samples_file)
    for side in ("student", "teacher"):
        right = [exact_match(sample["answers"][f"{side}, greedy"], sample["references"]) for sample in samples]
        assert entry[side]["metrics"]["exact_match_greedy"]["value"] == pytest.approx(sum(right) / len(right))


def test_the_trained_student_is_measured_once_there_is_one(run, saved_world: Path) -> None:
    tree, folder = run
    before = evaluate_run(parse(tree), folder)
    folder.student.symlink_to(saved_world / "teacher")
    after = evaluate_run(parse(tree), folder)
    assert before["student"]["model"] == tree["student"]["model"]
    assert after["student"]["model"] == str(folder.student)
    assert after["student"]["metrics"]["kl_teacher_student"]["value"] == 0.0
    assert after["difference"]["metrics"]["nll"]["value"] == 0.0
    given = evaluate_run(parse(tree), folder, student=saved_world / "student")
    assert given["student"]["metrics"] == before["student"]["metrics"]


def test_a_student_saved_as_adapters_is_measured_on_its_base(run, saved_world: Path) -> None:
    peft = pytest.importorskip("peft")
    from amidkd.models import load_model, load_tokenizer, save_student

    tree, folder = run
    source = saved_world / "student"
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(load_model(source), settings)
    save_student(adapted, load_tokenizer(source), folder.student, merge_lora=False)
    apart = evaluate_run(parse(tree), folder)
    save_student(adapted, load_tokenizer(source), folder.student, merge_lora=True)
    merged = evaluate_run(parse(tree), folder)
    plain = evaluate_run(parse(tree), folder, student=source)
    nll = [entry["student"]["metrics"]["nll"]["value"] for entry in (apart, merged, plain)]
    assert nll[0] == pytest.approx(nll[1], rel=1e-9)
    assert abs(nll[0] - nll[2]) > 1e-3


def test_a_run_without_a_teacher_is_measured_alone(run) -> None:
    tree, folder = run
    entry = evaluate_run(parse({**tree, "teacher": None}), folder)
    assert "teacher" not in entry
    assert "kl_teacher_student" not in entry["student"]["metrics"]
    assert set(read_json_lines(folder.samples_file)[0]["answers"]) == {"student, greedy", "student, sampled"}


def test_a_teacher_is_measured_once_for_all_its_students_on_the_same_rows(run, monkeypatch) -> None:
    from amidkd.evaluation import run as module

    tree, folder = run
    names: list[str] = []
    evaluate = module.evaluate_model
    monkeypatch.setattr(module, "evaluate_model", lambda *a, **k: (names.append(k["name"]), evaluate(*a, **k))[1])
    known = TeacherResults()
    first = evaluate_run(parse(tree), folder, teacher_results=known)
    again = evaluate_run(changed({**tree, "objective": {}}, "objective", alpha=-3), folder, teacher_results=known)
    assert names == ["student", "teacher", "student"]
    assert again["teacher"]["metrics"] == first["teacher"]["metrics"]
    assert again["difference"] == first["difference"]
    evaluate_run(changed(tree, "evaluation", sampling_seeds=[3]), folder, teacher_results=known)
    assert names[3:] == ["student", "teacher"]


def test_the_evaluation_section_chooses_the_rows(run, tmp_path: Path) -> None:
    tree, folder = run
    write_json_lines(
        tmp_path / "test.jsonl", [{"prompt": "red", "completion": "cat"}, {"prompt": "x", "completion": "y"}]
    )
    entry = evaluate_run(changed(tree, "evaluation", data=str(tmp_path / "test.jsonl"), max_rows=1), folder)
    assert entry["data"]["rows"] == 1
    assert entry["student"]["metrics"]["nll"]["errors"] == []


def test_rows_left_out_or_cut_are_counted(run, world) -> None:
    tree, folder = run
    limits = {"max_prompt_length": 5, "max_length": 7, "long_prompts": "drop"}
    data = evaluate_run(changed(tree, "data", **limits), folder)["data"]
    prompts, answers = ([len(text.split()) for text in texts] for texts in zip(*map(_pair, world.rows), strict=True))
    kept = [place for place, length in enumerate(prompts) if length + 2 <= 5]
    assert 0 < len(kept) < 11
    assert (data["rows"], data["rows_dropped"]) == (len(kept), 11 - len(kept))
    assert data["rows_truncated"] == sum(prompts[place] + 2 + answers[place] + 1 > 7 for place in kept) > 0


def _pair(row) -> tuple[str, str]:
    return row.prompt, row.completion


def test_bad_input_stops_before_anything_is_written(run) -> None:
    tree, folder = run
    with pytest.raises(SettingError, match=r"name a file in evaluation\.data or data\.validation"):
        evaluate_run(changed(tree, "data", validation=None), folder)
    with pytest.raises(SettingError, match=r"nowhere\.jsonl"):
        evaluate_run(changed(tree, "evaluation", data="/nowhere.jsonl"), folder)
    scratch = {"kind": "from_scratch", "config": {"model_type": "llama"}}
    with pytest.raises(SettingError, match="no student yet; train it first: amidkd distill"):
        evaluate_run(parse({**tree, "student": scratch}), folder)
    assert not folder.path.exists()


def test_the_table_on_the_screen_names_every_error(run, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    tree, folder = run
    entry = evaluate_run(changed(tree, "evaluation", max_rows=3), folder)
    capsys.readouterr()
    print_evaluation({**entry, "missing": ["a thing: a [reason]"]})
    shown = capsys.readouterr().out
    nll = entry["student"]["metrics"]["nll"]
    low, high = nll["interval"]
    assert f"{nll['value']:.3f} [{low:.3f},{high:.3f}]" in " ".join(shown.split())
    assert "95 % confidence interval over prompts" in shown
    assert "p over prompts, s over sampling seeds" in shown
    assert "Not measured: a thing: a [reason]" in shown
