"""A run whose text a vLLM server writes: the server is killed in mid-run, and nothing is lost."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from killing import RESUME, lines_of

from amidkd.cli import main
from amidkd.config import load
from amidkd.policies import read_answers
from amidkd.record import RunFolder
from amidkd.training import distill

STAND_IN = Path(__file__).parents[1] / "generation" / "vllm_stand_in.py"


@contextmanager
def serving(model: str, *words: str) -> Iterator[str]:
    """A stand-in of ``vllm serve`` in a process of its own; gives its address."""
    process = subprocess.Popen(
        [sys.executable, str(STAND_IN), model, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def run_file(run_tree: dict[str, Any], world: Path, tmp_path: Path) -> Path:
    """Greedy answers, so that the server must write what the student in this process would."""
    import yaml

    run_tree["student"] = str(world / "pretrained")
    run_tree["policy"] = {"kind": "on_policy", "generation": {"max_new_tokens": 6, "temperature": 0, "batch_size": 4}}
    run_tree["training"]["max_steps"] = 8
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    return path


def engine(url: str) -> str:
    return f"policy.generation.engine={{kind: vllm, url: '{url}', retries: 0, timeout: 20}}"


def test_killed_server_then_resumed(run_file, world, tmp_path, capsys) -> None:
    own = distill(load(run_file, [f"output={tmp_path / 'own'}"]))
    folder = RunFolder(tmp_path / "run")
    # A probe at the start, then four answers a step: it dies within step 6, after the checkpoint of step 4.
    with serving(str(world / "pretrained"), "--die-after", "22") as url:
        assert main(["distill", str(run_file), engine(url)]) == 1
    said = capsys.readouterr().err
    assert "amidkd: no text to learn from:" in said
    assert url in said
    assert "The run stopped before step 6; checkpoint-5 in" in said
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-4", "checkpoint-5"]
    with serving(str(world / "pretrained")) as url:
        distill(load(run_file, [RESUME, engine(url)]))
    assert [line["step"] for line in lines_of(folder)] == [3, 6, 8]
    assert lines_of(folder) == lines_of(own)
    assert (folder.student / "model.safetensors").read_bytes() == (own.student / "model.safetensors").read_bytes()


def test_no_server_is_an_error_before_work_starts(run_file, tmp_path) -> None:
    assert main(["distill", str(run_file), engine("http://127.0.0.1:9")]) == 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_server_writes_the_drafts_of_a_warm_up(run_file, world, tmp_path) -> None:
    """It is given the student's weights, whatever it was started with; the teacher corrects in this process."""
    warmup = ["policy.kind=warmup", "policy.reject_threshold=0.004", "training.max_steps=2"]
    own = distill(load(run_file, [*warmup, f"output={tmp_path / 'own'}"]))
    with serving(str(world / "teacher")) as url:
        served = distill(load(run_file, [*warmup, engine(url), f"output={tmp_path / 'served'}"]))
    for folder in ("drafts", "corrected"):
        mine, theirs = (read_answers(run.path / folder) for run in (own, served))
        assert [answer.completion_tokens for answer in mine] == [answer.completion_tokens for answer in theirs]
    assert own.record()["stages"]["corrections"]["rejected"] > 0
