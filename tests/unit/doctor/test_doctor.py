"""What the doctor counts, shows and compares."""

import json
from pathlib import Path

import pytest

from amidkd.config import RunConfig, parse
from amidkd.doctor import Cost, compare_with_estimate, examine
from amidkd.doctor.cost import optimizer_steps
from amidkd.record import RunFolder
from tiny_world import WORDS, make_model, make_tokenizer


def config(folder: Path, **sections) -> RunConfig:
    if not (folder / "teacher").exists():
        for name, seed in (("teacher", 1), ("student", 2)):
            make_model(width=8, layers=1, seed=seed, padded_vocab=24).save_pretrained(folder / name)
            make_tokenizer().save_pretrained(folder / name)
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": WORDS[i % 5], "completion": " ".join(WORDS[: i % 7 + 1])}) + "\n" for i in range(20)
        )
    )
    tree = {
        "student": {"model": str(folder / "student")},
        "teacher": {"model": str(folder / "teacher")},
        "data": {"train": str(rows), "prompt_template": "<s> {prompt} <sep>", "generation": {"max_new_tokens": 4}},
        "training": {"per_device_train_batch_size": 4, "num_train_epochs": 2},
        "output": str(folder / "run"),
    }
    for name, values in sections.items():
        tree[name] = {**tree[name], **values} if isinstance(tree.get(name), dict) else values
    return parse(tree)


def findings(run: RunConfig) -> tuple[bool, str]:
    lines: list[str] = []
    return examine(run, show=lines.append), "\n".join(lines)


def test_finds_a_sound_run_sound_and_leaves_an_estimate(tmp_path) -> None:
    good, text = findings(config(tmp_path))
    assert good, text
    assert "20 to learn from, 20 with a label" in text
    assert "<s> red <sep> ⟦red </s>⟧" in text
    assert "10 steps" in text
    estimate = json.loads((tmp_path / "run" / "doctor.json").read_text())
    assert estimate["steps"] == 10
    assert estimate["seconds"] > 0
    assert estimate["peak_memory_mb"] > 0


def test_says_what_is_cut_dropped_and_left_to_the_teacher(tmp_path) -> None:
    run = config(tmp_path)
    data = {**run.data.model_dump(), "max_length": 6, "label_fraction": 0.5}
    good, text = findings(config(tmp_path, data=data))
    assert good, text
    assert "10 with a label" in text
    assert "rows cut at data.max_length = 6" in text
    assert "10 answers" in text


@pytest.mark.parametrize(
    ("policy", "says", "steps"),
    [
        ({"kind": "on_policy"}, "the student's own; the student as it is now writes 4 answers", 10),
        ({"kind": "sequence_level"}, "text that the teacher wrote beforehand", 10),
        (
            {"kind": "contrastive", "refresh": "step"},
            "the teacher's and the student's answer to each prompt; the stud",
            10,
        ),
    ],
)
def test_tells_whose_text_and_what_it_costs(tmp_path, policy, says, steps) -> None:
    if policy["kind"] != "sequence_level":
        policy = {**policy, "generation": {"max_new_tokens": 4}}
    good, text = findings(config(tmp_path, policy=policy))
    assert good, text
    assert f"policy: {says}" in text
    assert f"{steps} steps" in text
    # Labels are not looked at where the teacher's own text is wanted.
    assert ("20 prompts to answer first" in text) == (policy["kind"] != "on_policy")


def test_a_prompt_without_room_is_wrong_before_the_run(tmp_path) -> None:
    good, text = findings(config(tmp_path, policy={"kind": "on_policy", "generation": {"max_new_tokens": 62}}))
    assert not good
    assert "WRONG policy" in text
    assert "would pass the student's context of 64" in text


def test_later_checks_wait_for_earlier_ones(tmp_path) -> None:
    good, text = findings(config(tmp_path, data={"train": str(tmp_path / "absent.jsonl")}))
    assert not good
    assert "WRONG rows" in text
    assert "cost: not looked at" in text
    assert not (tmp_path / "run" / "doctor.json").exists()


def test_a_head_that_is_read_wrongly_is_found(tmp_path, monkeypatch) -> None:
    from amidkd.models.backbone import Backbone
    from amidkd.signals import Hidden

    whole = Backbone.__call__

    def misread(self, *args, **kwargs):
        signal = whole(self, *args, **kwargs)
        assert isinstance(signal, Hidden)
        return Hidden(signal.states, signal.weight, signal.bias, scale=0.5)

    monkeypatch.setattr(Backbone, "__call__", misread)
    good, text = findings(config(tmp_path))
    assert not good
    assert "WRONG teacher" in text
    assert "its head is read wrongly" in text


@pytest.mark.parametrize(
    ("examples", "epochs", "max_steps", "expected"),
    [(10, 2.0, -1, 4), (10, 0.5, -1, 1), (10, 2.0, 7, 7), (16, 1.0, None, 2)],
)
def test_steps_are_counted_as_the_trainer_counts_them(tmp_path, examples, epochs, max_steps, expected) -> None:
    run = config(tmp_path, training={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2})
    assert optimizer_steps(run, examples, epochs=epochs, max_steps=max_steps) == expected


def test_an_estimate_is_held_against_the_run_it_was_made_for(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    assert compare_with_estimate(folder) is None
    Cost(seconds=10.0, peak_memory_mb=100.0, steps=5).save(folder)
    folder.update_record(stages={"warm_start": {"seconds": 2.0, "peak_memory_mb": 90.0, "steps": 3}})
    assert compare_with_estimate(folder) is None
    folder.update_record(stages={"distill": {"seconds": 9.0, "peak_memory_mb": 120.0, "steps": 5}})
    assert "estimated 10 s and 100 MiB; the run used 11 s and 120 MiB" in (compare_with_estimate(folder) or "")
    assert folder.record()["estimate"]["used_seconds"] == 11.0
    folder.update_record(stages={"distill": {"seconds": 9.0, "peak_memory_mb": 120.0, "steps": 6}})
    assert compare_with_estimate(folder) is None
