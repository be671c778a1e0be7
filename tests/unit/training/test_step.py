"""The gradient of a step does not depend on how its rows are spread over passes, padding and processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from one_step import KINDS, POLICIES, one_step, rows
from tiny import VOCABULARY, tiny_gpt2

from amidkd.kernels import distillation_loss
from amidkd.maths import Objective
from amidkd.signals import Logits
from amidkd.training.metrics import TIME_FIELDS

SCRIPT = Path(__file__).with_name("one_step.py")


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_lines(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - set(TIME_FIELDS):
            assert one[key] == pytest.approx(other[key], rel=1e-9), key


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each kind of loss, and of text that the student writes, with all eight rows in one pass."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: one_step(folder / kind, batch=8, accumulation=1, kind=kind) for kind in (*KINDS, *POLICIES)}


@pytest.mark.parametrize("kind", [*KINDS, *POLICIES])
@pytest.mark.parametrize(("batch", "accumulation", "multiple_of"), [(2, 4, None), (1, 8, None), (8, 1, 48), (3, 3, 16)])
def test_accumulation_and_padding(whole, kind, batch, accumulation, multiple_of, tmp_path) -> None:
    found = one_step(tmp_path, batch=batch, accumulation=accumulation, kind=kind, multiple_of=multiple_of)
    assert_same(found["weights"], whole[kind]["weights"])
    assert_same_lines(found["lines"], whole[kind]["lines"])


def test_step_is_the_mean_over_all_supervised_tokens(whole) -> None:
    """Against a few lines of plain torch: every token of every row has the same weight."""
    student, teacher = tiny_gpt2(2).double(), tiny_gpt2(1, width=24).double()
    total, tokens, objective = 0.0, 0, Objective(alpha=-0.5, lam=0.3)
    for row in rows():
        ids = torch.tensor([row.tokens])
        predicts = [place - 1 for place, target in enumerate(row.targets) if target]
        q, p = (model(ids).logits[0, predicts].log_softmax(-1) for model in (student, teacher))
        total = total + objective(teacher=p.detach(), student=q).sum()
        tokens += len(predicts)
    (total / tokens).backward()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= parameter.grad
    assert_same(whole["kl"]["weights"], student.state_dict())
    assert whole["kl"]["lines"][0]["loss"] == pytest.approx(float(total.detach()) / tokens, rel=1e-10)
    assert whole["kl"]["lines"][0]["tokens"] == tokens


def test_logged_metrics_are_means_over_all_passes(whole) -> None:
    student, teacher = tiny_gpt2(2).double(), tiny_gpt2(1, width=24).double()
    sides: dict[str, list] = {"student": [], "teacher": []}
    for row in rows():
        predicts = [place - 1 for place, target in enumerate(row.targets) if target]
        for name, model in (("student", student), ("teacher", teacher)):
            sides[name].append(model(torch.tensor([row.tokens])).logits[0, predicts].detach())
    out = distillation_loss(
        student=Logits(torch.cat(sides["student"])),
        teacher=Logits(torch.cat(sides["teacher"])),
        objective=Objective(alpha=-0.5, lam=0.3),
        vocab_size=VOCABULARY,
        metrics=True,
    )
    line = whole["kl"]["lines"][0]
    for name in ("kl_teacher_student", "kl_student_teacher", "entropy_assistant", "responsibility", "top1_agreement"):
        assert line[name] == pytest.approx(float(out.metrics[name]), rel=1e-9), name
    assert (line["alpha"], line["lam"]) == (-0.5, 0.3)


def launch(*words: str) -> None:
    # --multi_gpu asks for several processes; the script's use_cpu makes them gloo on the CPU.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    options += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_with_unequal_token_counts(tmp_path) -> None:
    """Nine rows in batches of two on two ranks: the last step of an epoch leaves one rank without a row."""
    kinds, count, steps = ["kl", "corpus", "sft", "on_policy", "mixed", "contrastive"], 9, 3
    launch(str(tmp_path), "2", "2", ",".join(kinds), str(count), str(steps))
    for kind in kinds:
        both = torch.load(tmp_path / f"{kind}.pt", weights_only=True)
        assert both["ranks"] == 2
        one = one_step(tmp_path / f"one-{kind}", batch=4, accumulation=2, kind=kind, count=count, steps=steps)
        assert_same(both["weights"], one["weights"])
        assert_same_lines(both["lines"], one["lines"])
