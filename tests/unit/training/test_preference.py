"""The warm-up by preference: TRL's trainer on the ids that were really said."""

import importlib.util
import shutil

import pytest
import yaml

from amidkd.config import load
from amidkd.errors import SettingError
from amidkd.policies import read_answers
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import distill

RESUME = "training.resume_from_checkpoint=true"

needs_trl = pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs TRL (extra dpo)")


@pytest.fixture
def run_file(run_tree, world, tmp_path):
    run_tree["student"] = str(world / "pretrained")
    run_tree["training"] |= {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "learning_rate": 1e-3}
    run_tree["policy"] = {
        "kind": "warmup",
        "loss": "dpo",
        "dpo_beta": 0.5,
        "reject_threshold": 5e-4,
        "rounds": 1,
        "generation": {"max_new_tokens": 6},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_tree))
    return path


def test_without_trl_the_extra_is_named_before_any_work(run_file, tmp_path, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trl" else find(name, *rest))
    with pytest.raises(SettingError, match=r'pip install "amidkd\[dpo\]"'):
        distill(load(run_file))
    assert not (tmp_path / "run").exists()


@needs_trl
def test_the_student_prefers_the_corrected_text_afterwards(run_file) -> None:
    folder = distill(load(run_file, ["training.max_steps=20", "training.logging_steps=20"]))
    (line,) = read_json_lines(folder.metrics_file)
    stage = folder.record()["stages"]["distill"]
    assert (line["step"], stage["steps"], stage["backend"]) == (20, 20, "trl")
    assert line["loss"] < 0.6931
    assert line["rewards/margins"] > 0
    counts = folder.record()["stages"]["corrections"]
    assert 0 < counts["rejected"] < counts["prompts"], "rows that nothing was rejected in are left out"


@needs_trl
def test_chosen_is_the_corrected_text_and_rejected_the_draft_by_their_ids(run_file, monkeypatch) -> None:
    from trl import DPOTrainer

    seen, compute = [], DPOTrainer.compute_loss

    def noted(self, model, inputs, *rest, **options):
        seen.append(inputs)
        return compute(self, model, inputs, *rest, **options)

    monkeypatch.setattr(DPOTrainer, "compute_loss", noted)
    folder = distill(load(run_file, ["training.max_steps=1", "training.per_device_train_batch_size=64"]))
    drafts, texts = read_answers(folder.drafts), read_answers(folder.corrected)
    pairs = [(d, t) for d, t in zip(drafts, texts, strict=True) if d.completion_tokens != t.completion_tokens]
    inputs = seen[0]
    found = [
        (tuple(ids[keep == 1].tolist()), tuple(ids[target == 1].tolist()))
        for ids, keep, target in zip(
            inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"], strict=True
        )
    ]
    for half, place in ((found[: len(pairs)], 1), (found[len(pairs) :], 0)):
        sides = [pair[place] for pair in pairs]
        said = [(side.prompt_tokens + side.completion_tokens, side.completion_tokens) for side in sides]
        assert sorted(half) == sorted(said)


@needs_trl
def test_it_goes_on_from_the_last_whole_checkpoint(run_file, tmp_path) -> None:
    whole = distill(load(run_file, [f"output={tmp_path / 'whole'}"]))
    folder = RunFolder(tmp_path / "run")
    distill(load(run_file))
    # As a kill in mid-save of the last checkpoint leaves it.
    (folder.path / "checkpoint-4/amidkd_state.json").unlink()
    (folder.path / "checkpoint-4/optimizer.pt").unlink()
    folder.update_record(finished=None)
    distill(load(run_file, [RESUME]))
    lines = [read_json_lines(one.metrics_file) for one in (folder, whole)]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4]
    assert lines[0][-1]["loss"] == pytest.approx(lines[1][-1]["loss"], rel=1e-3)
    weights = (folder.student / "model.safetensors").read_bytes()
    shutil.rmtree(folder.student)
    folder.update_record(finished=None)
    distill(load(run_file, [RESUME]))
    assert (folder.student / "model.safetensors").read_bytes() == weights, "it was trained already"
    with pytest.raises(SettingError, match=r"dpo_beta: 0\.5 there, 0\.1 now"):
        distill(load(run_file, [RESUME, "policy.dpo_beta=0.1"]))


@needs_trl
def test_adapters_prefer_what_they_were_trained_on(run_file, world) -> None:
    pytest.importorskip("peft", reason="needs the extra lora")
    folder = distill(load(run_file, [f"student={{model: {world / 'pretrained'}, lora: {{rank: 2, merge: false}}}}"]))
    assert {path.name for path in folder.student.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert not (folder.student / "ref").exists(), "TRL's copy for reference is not part of the student"


@needs_trl
def test_nothing_to_prefer_is_an_error(run_file) -> None:
    with pytest.raises(SettingError, match="nothing to prefer"):
        distill(load(run_file, ["policy.reject_threshold=1e-12"]))
