"""Learning from text that the teacher or the student wrote to all prompts beforehand: SeqKD and ImitKD."""

import json
from typing import Any

import pytest
from tiny import byte_tokenizer, tiny_gpt2

from amidkd.config import RunConfig, parse
from amidkd.errors import SettingError
from amidkd.policies import read_answers
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import distill, run_generate, sft

FOLDER = "generated"


@pytest.fixture
def tree(run_tree, world) -> dict[str, Any]:
    run_tree["student"] = str(world / "pretrained")
    run_tree["policy"] = {"kind": "sequence_level"}
    run_tree["training"] |= {"max_steps": 3, "logging_steps": 1}
    return run_tree


def config_of(tree: dict[str, Any], **policy: Any) -> RunConfig:
    return parse({**tree, "policy": {**tree["policy"], **policy}})


def test_sft_on_the_teachers_text_is_seqkd(tree) -> None:
    run = sft(config_of(tree))
    answers = read_answers(run.generated)
    assert len(answers) == 22, "labels are not looked at"
    record = run.record()
    assert record["data"] == {"answered by the teacher": 22}
    assert record["stages"]["answers"]["answers"] == 22
    line = read_json_lines(run.metrics_file)[-1]
    assert line["loss"] > 0
    assert "kl_teacher_student" not in line, "cross-entropy alone"


def test_distill_on_the_students_text_is_imitkd(tree) -> None:
    tree["objective"] = {"between": "teacher||student"}
    tree["data"]["generation"]["samples_per_prompt"] = 2
    run = distill(config_of(tree, writer="student"))
    answers = read_answers(run.generated)
    assert {answer.origin for answer in answers} == {"student"}
    assert (len(answers), {answer.sample for answer in answers}) == (44, {0, 1})
    assert run.record()["data"] == {"answered by the student": 44}
    assert read_json_lines(run.metrics_file)[-1]["kl_teacher_student"] > 0


@pytest.mark.parametrize("writer", ["teacher", "student"])
def test_text_that_generate_wrote_is_learnt_from_by_any_run_with_the_same_prompts(tree, tmp_path, writer) -> None:
    folder = run_generate(config_of(tree, writer=writer))
    assert folder == tmp_path / "run" / FOLDER
    whole = sft(config_of(tree, writer=writer))
    tree["output"] = str(tmp_path / "other")
    # How the text was sampled is the folder's own business.
    tree["data"]["generation"] |= {"temperature": 0.7, "samples_per_prompt": 3, "max_new_tokens": 4}
    other = sft(config_of(tree, writer=writer, folder=str(folder)))
    assert not other.generated.exists()
    assert "answers" not in other.record()["stages"]
    weights = [(run.student / "model.safetensors").read_bytes() for run in (whole, other)]
    assert weights[0] == weights[1]


def test_text_needs_no_teacher_to_be_learnt_from(tree, tmp_path) -> None:
    folder = run_generate(config_of(tree))
    tree |= {"teacher": None, "output": str(tmp_path / "alone")}
    assert sft(config_of(tree, folder=str(folder))).record()["data"] == {"answered by the teacher": 22}
    tree["output"] = str(tmp_path / "third")
    with pytest.raises(SettingError, match=r"policy\.writer: teacher needs a `teacher` section"):
        sft(config_of(tree))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree, other: tree.update(teacher=other), ["writer"]),
        (lambda tree, other: tree["data"].update(prompt_template="{prompt} "), ["prompt_template", "prompts"]),
        (lambda tree, other: tree["data"].update(max_rows=20), ["prompts"]),
        (lambda tree, other: tree["policy"].update(writer="student"), ["origin", "writer"]),
    ],
)
def test_a_folder_of_another_making_is_refused_before_work_starts(tree, tmp_path, change, named) -> None:
    folder = run_generate(config_of(tree))
    tiny_gpt2(7, width=24, layers=2).save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    change(tree, str(tmp_path / "other"))
    tree["output"] = str(tmp_path / "second")
    with pytest.raises(SettingError) as caught:
        distill(config_of(tree, folder=str(folder)))
    assert [line.split()[0] for line in str(caught.value).splitlines()[1:-1]] == named
    assert not (tmp_path / "second").exists()


def test_a_folder_that_another_call_began_is_refused(tree, tmp_path) -> None:
    with pytest.raises(SettingError, match="no folder of written text"):
        sft(config_of(tree, folder=str(tmp_path / "absent")))
    folder = run_generate(config_of(tree))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    tree["output"] = str(tmp_path / "second")
    with pytest.raises(SettingError, match="not complete"):
        sft(config_of(tree, folder=str(folder)))


@pytest.mark.parametrize("kind", ["from_scratch", "depth_pruned"])
def test_a_student_that_was_not_trained_writes_nothing(run_tree, tmp_path, kind) -> None:
    run_tree["policy"] = {"kind": "sequence_level", "writer": "student"}
    if kind == "depth_pruned":
        run_tree["student"] = {"kind": "depth_pruned", "layers": 1}
    for verb in (run_generate, distill):
        with pytest.raises(
            SettingError, match=rf"policy\.writer: student, with student\.kind: {kind}: .* train it first"
        ):
            verb(parse(run_tree))
    assert not (tmp_path / "run" / FOLDER).exists()


def test_generate_refuses_what_it_would_not_write_to(tree, tmp_path) -> None:
    with pytest.raises(SettingError, match=r"policy\.folder: .* leave policy\.folder out"):
        run_generate(config_of(tree, folder=str(tmp_path / "there")))
    with pytest.raises(SettingError, match="stages have their text written when they begin"):
        run_generate(parse({**tree, "stages": [{"name": "one"}]}))
    tree["teacher"] = None
    with pytest.raises(SettingError, match="generate needs a `teacher` section"):
        run_generate(config_of(tree))
    assert run_generate(config_of(tree, writer="student")) == tmp_path / "run" / FOLDER


def test_a_folder_may_be_moved_between_a_run_and_its_resume(tree, tmp_path) -> None:
    folder = run_generate(config_of(tree))
    tree |= {"output": str(tmp_path / "second")}
    sft(config_of(tree, folder=str(folder)))
    folder.rename(tmp_path / "moved")
    tree["training"]["resume_from_checkpoint"] = True
    run = sft(config_of(tree, folder=str(tmp_path / "moved")))
    assert run.path == RunFolder(tmp_path / "second").path
