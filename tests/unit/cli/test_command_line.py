"""The command line as a user meets it: one message and an exit code for bad input, and the whole way on a tiny run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from amidkd.cli import main
from tiny_world import make_tokenizer


def outcome(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_the_whole_way(run_file, capsys, tmp_path) -> None:
    path = str(run_file())
    code, out, err = outcome(capsys, "doctor", path)
    assert code == 0, out + err
    assert "The run can start." in out
    assert "WRONG" not in out
    code, out, err = outcome(capsys, "distill", path)
    assert code == 0, err
    assert "The doctor estimated" in out
    assert str(tmp_path / "run" / "student") in out
    run = str(tmp_path / "run")
    card = tmp_path / "run" / "student" / "README.md"
    assert "model-index" not in card.read_text(encoding="utf-8")
    code, out, err = outcome(capsys, "eval", run)
    assert code == 0, err
    assert "student" in out
    assert "model-index" in card.read_text(encoding="utf-8")
    code, out, err = outcome(capsys, "report", run)
    assert code == 0, err
    code, out, err = outcome(capsys, "cite", run)
    assert (code, "2510.15982" in out) == (0, True)
    names = {p.name for p in (tmp_path / "run").iterdir()}
    files = {"run.yaml", "record.json", "metrics.jsonl", "samples.jsonl", "student", "report.html", "checkpoint-4"}
    assert files <= names
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert {"config", "versions", "commit", "seeds", "device", "results", "stages", "estimate"} <= set(record)


def test_a_student_measured_before_training_has_a_folder_to_report_on_and_to_train_in(
    run_file, capsys, tmp_path
) -> None:
    path, run = str(run_file()), str(tmp_path / "run")
    assert outcome(capsys, "eval", path, "evaluation.max_rows=2")[0] == 0
    code, out, err = outcome(capsys, "report", run)
    assert (code, "report.html" in out) == (0, True), err
    assert outcome(capsys, "distill", path)[0] == 0


def test_a_second_run_does_not_write_over_the_first(run_file, capsys) -> None:
    path = str(run_file())
    assert outcome(capsys, "distill", path)[0] == 0
    code, _, err = outcome(capsys, "distill", path)
    assert code == 2
    assert "training.resume_from_checkpoint=true" in err
    assert outcome(capsys, "distill", path, "training.resume_from_checkpoint=true")[0] == 0
    code, _, err = outcome(capsys, "distill", path, "training.resume_from_checkpoint=true", "objective.alpha=-3")
    assert code == 2
    assert "objective.alpha" in err


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["objective.lam=1.2"], "objective.lam"),
        (["objective.alhpa=1"], "did you mean 'alpha'"),
        (["objective.alpha=.nan"], "objective.alpha: must be a finite number; got nan"),
        (["objective.detach_assistant=true"], "leaves no gradient"),
        (["training.learning_rat=1e-3"], "learning_rate"),
        (["data.train=nowhere.jsonl"], "nowhere.jsonl"),
        (["teacher.model=./nowhere"], "nowhere"),
        (["teacher=null"], "teacher"),
        (["data.prompt_template=hello"], "{prompt}"),
    ],
)
def test_bad_setting_is_one_message_and_exit_code_2(run_file, capsys, tmp_path, overrides, expected) -> None:
    code, _, err = outcome(capsys, "distill", str(run_file()), *overrides)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists(), "nothing has started"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", "no row"), ('{"prompt": "red"}\n{broken\n', "line 2"), ('{"question": "red", "answer": "cat"}\n', "prompt")],
)
def test_bad_data_names_file_and_line(run_file, capsys, tmp_path, text, expected) -> None:
    rows = tmp_path / "bad.jsonl"
    rows.write_text(text)
    code, _, err = outcome(capsys, "distill", str(run_file(data={"train": str(rows)})))
    assert code == 2
    assert "bad.jsonl" in err
    assert expected in err


def test_another_tokenizer_is_refused_with_the_ids_that_differ(run_file, capsys, tiny_folder, tmp_path) -> None:
    other = tmp_path / "other"
    from tiny_world import make_model

    make_model(width=16, layers=1, seed=3, padded_vocab=24).save_pretrained(other)
    tokenizer = make_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    vocab["cat"], vocab["dog"] = vocab["dog"], vocab["cat"]
    tokenizer.save_pretrained(other)
    saved = json.loads((other / "tokenizer.json").read_text())
    saved["model"]["vocab"] = vocab
    (other / "tokenizer.json").write_text(json.dumps(saved))
    code, _, err = outcome(capsys, "distill", str(run_file(teacher={"model": str(other)})))
    assert code == 2
    assert "cat" in err
    assert "dog" in err


def test_doctor_says_what_is_wrong_and_exits_with_1(run_file, capsys) -> None:
    code, out, _ = outcome(capsys, "doctor", str(run_file()), "teacher.model=./nowhere")
    assert code == 1
    assert "WRONG vocabulary" in out
    assert "not looked at" in out
    assert "The run cannot start" in out


def test_a_loss_that_is_not_finite_stops_with_exit_code_1(run_file, capsys, tmp_path) -> None:
    # The learning rate throws the weights out of range after the first step.
    path = run_file(training={"max_steps": 50, "learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0})
    code, _, err = outcome(capsys, "distill", str(path))
    assert code == 1
    assert "training stopped" in err
    assert "step" in err
    assert not (tmp_path / "run" / "student").exists()


def test_generate_writes_answers(run_file, capsys, tmp_path) -> None:
    code, out, err = outcome(capsys, "generate", str(run_file()))
    assert code == 0, err
    assert (tmp_path / "run" / "generated" / "manifest.json").is_file()
    assert str(tmp_path / "run" / "generated") in out


def test_sft_needs_no_teacher(run_file, capsys, tmp_path) -> None:
    code, _, err = outcome(capsys, "sft", str(run_file()), "teacher=null")
    assert code == 0, err
    assert (tmp_path / "run" / "student" / "model.safetensors").is_file()


def test_module_runs_and_names_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "amidkd", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("amidkd ")


def test_no_verb_prints_the_help(capsys) -> None:
    code, out, _ = outcome(capsys)
    assert code == 0
    for verb in ("demo", "distill", "sft", "generate", "eval", "report", "doctor", "cite"):
        assert verb in out


def test_missing_run_file(capsys, tmp_path: Path) -> None:
    code, _, err = outcome(capsys, "distill", str(tmp_path / "run.yaml"))
    assert code == 2
    assert "no run file at" in err


def test_a_closed_pipe_is_no_error(run_file) -> None:
    command = f"{sys.executable} -m amidkd cite {run_file()} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in done.stderr


def test_settings_may_come_after_an_option(run_file, capsys) -> None:
    path = str(run_file())
    code, _, err = outcome(capsys, "report", path, "--format", "md", "training.seed=x")
    assert (code, "training.seed" in err) == (2, True)
    for words in (
        ("report", path, "--format", "md", "md"),
        ("watch", path, "--tui", "training.seed=1"),
        ("demo", "--a=b"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        assert ended.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err
