"""Runs from the run file to the run folder."""

import json
import warnings

import pytest
import torch
import yaml
from safetensors.torch import load_file

from amidkd.config import load, parse
from amidkd.errors import SettingError, SettingWarning
from amidkd.policies import read_answers
from amidkd.record import RunFolder, read_json_lines
from amidkd.training import distill, run_generate, sft, warm_start_of

METRICS = {
    "step", "epoch", "loss", "grad_norm", "learning_rate", "divergence", "kl_teacher_student", "kl_student_teacher",
    "entropy_teacher", "entropy_student", "entropy_assistant", "top1_agreement", "responsibility", "alpha", "lam",
    "tokens", "tokens_per_second", "peak_memory_mb", "seconds",
}  # fmt: skip


def test_distill_leaves_a_whole_run_folder(run_tree) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_tree["student"]["warm_start"] = None
    run_tree["data"]["label_fraction"] = 0.5
    folder = distill(parse(run_tree))
    lines = read_json_lines(folder.metrics_file)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert set(lines[0]) == METRICS
    record = folder.record()
    # A student from random weights is warmed up without being asked.
    assert list(record["stages"]) == ["answers", "warm_start", "distill"]
    assert record["stages"]["distill"]["steps"] == 12
    assert record["stages"]["distill"]["backend"] in ("fused", "chunked")
    assert record["stages"]["distill"]["tokens"] == lines[-1]["tokens"]
    assert record["data"] == {"labelled": 11, "answered by the teacher": 11}
    assert record["models"]["student"]["parameters"] < record["models"]["teacher"]["parameters"]
    assert record["seeds"]["training"] == 42
    assert record["versions"]["torch"] == torch.__version__
    assert record["started"] <= record["finished"]
    assert load(folder.path).objective == parse(run_tree).objective
    model = AutoModelForCausalLM.from_pretrained(folder.student)
    assert model.config.use_cache
    assert len(AutoTokenizer.from_pretrained(folder.student)) == model.config.vocab_size
    card = (folder.student / "README.md").read_text()
    for words in ("distilled from `teacher`", "KL(teacher‖assistant), α = −0.5, λ = 0.3", "Licence", "11 labelled"):
        assert words in card
    warm = read_json_lines(folder.path / "warm_start" / "metrics.jsonl")
    assert warm[-1]["loss"] < warm[0]["loss"]
    assert "cross_entropy" in warm[0]
    # The warm start has twice the learning rate, and its checkpoints are not needed any more.
    assert max(line["learning_rate"] for line in warm) > 1.2 * max(line["learning_rate"] for line in lines)
    assert not RunFolder(folder.path / "warm_start").checkpoints()


def test_distillation_brings_the_student_nearer_to_its_teacher(run_tree) -> None:
    run_tree["training"] |= {"num_train_epochs": 15, "logging_steps": 5}
    lines = read_json_lines(distill(parse(run_tree)).metrics_file)
    assert lines[-1]["kl_teacher_student"] < 0.5 * lines[0]["kl_teacher_student"]


def test_terms_and_schedules_are_logged_and_used(run_tree) -> None:
    run_tree["objective"] = {
        "terms": [
            {"weight": 0.3, "between": "teacher||assistant", "alpha": {"kind": "linear", "start": 1, "end": -1}},
            {"weight": 0.7, "between": "student||assistant", "alpha": -1, "lam": 0.3},
        ]
    }
    run_tree["training"] |= {"max_steps": 3, "logging_steps": 1}
    lines = read_json_lines(distill(parse(run_tree)).metrics_file)
    assert [line["alpha"] for line in lines] == [1, 0, -1]
    assert {(line["lam"], line["alpha_2"], line["lam_2"]) for line in lines} == {(0.1, -1, 0.3)}


def test_sft_learns_from_the_labels_alone(run_tree, world, tmp_path) -> None:
    run_tree["teacher"] = None
    run_tree["student"]["tokenizer"] = str(world / "teacher")
    run_tree["data"]["label_fraction"] = 0.5
    folder = sft(parse(run_tree))
    record = folder.record()
    assert record["verb"] == "sft"
    assert record["data"] == {"labelled": 11, "no completion": 11}
    line = read_json_lines(folder.metrics_file)[-1]
    assert line["loss"] > 0
    assert not {"kl_teacher_student", "alpha"} & set(line)
    assert list(record["stages"]) == ["sft"]
    assert "fine-tuned by cross-entropy" in (folder.student / "README.md").read_text()


def test_sft_learns_from_the_teachers_answers_where_there_is_one(run_tree) -> None:
    run_tree["data"]["label_fraction"] = 0.5
    folder = sft(parse(run_tree))
    assert folder.record()["data"] == {"labelled": 11, "answered by the teacher": 11}
    run_tree["data"]["unlabelled"] = "drop"
    run_tree["output"] += "-labels"
    assert sft(parse(run_tree)).record()["data"] == {"labelled": 11, "no completion": 11}


def test_answers_are_written_once(run_tree) -> None:
    run_tree["data"]["label_fraction"] = 0.0
    config = parse(run_tree)
    path = run_generate(config)
    assert len(read_answers(path)) == 22
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    folder = distill(config)
    assert path == folder.generated
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before
    assert folder.record()["data"]["answered by the teacher"] == 22


def test_generate_answers_all_prompts_where_all_have_a_label(run_tree) -> None:
    assert len(read_answers(run_generate(parse(run_tree)))) == 22


@pytest.mark.parametrize("kind", ["pretrained", "depth_pruned", "lora"])
def test_every_kind_of_student(kind, run_tree, world) -> None:
    pretrained = {"kind": "pretrained", "model": str(world / "pretrained"), "warm_start": {"max_steps": 2}}
    run_tree["student"] = {
        "pretrained": pretrained,
        "depth_pruned": {"kind": "depth_pruned", "layers": 1},
        "lora": {**pretrained, "lora": {"rank": 2, "target_modules": ["c_attn"]}},
    }[kind]
    run_tree["training"] |= {"max_steps": 4, "gradient_checkpointing": kind == "lora"}
    if kind == "lora":
        pytest.importorskip("peft")
    folder = distill(parse(run_tree))
    weights = load_file(folder.student / "model.safetensors")
    start = load_file(world / ("teacher" if kind == "depth_pruned" else "pretrained") / "model.safetensors")
    changed = {name for name, tensor in weights.items() if not torch.equal(tensor, start[name])}
    if kind == "lora":
        assert changed == {"transformer.h.0.attn.c_attn.weight"}
    else:
        assert "transformer.wte.weight" in changed


def test_lora_resumes_exactly(run_tree, world, tmp_path) -> None:
    pytest.importorskip("peft")
    lora = {"rank": 2, "target_modules": ["c_attn"], "dropout": 0.1}
    run_tree["student"] = {"kind": "pretrained", "model": str(world / "pretrained"), "lora": lora}
    run_tree["training"] |= {"max_steps": 6, "save_steps": 2, "save_total_limit": 5}
    whole = distill(parse(run_tree))
    weights = (whole.student / "model.safetensors").read_bytes()
    config = parse(
        run_tree | {"training": {**run_tree["training"], "resume_from_checkpoint": str(whole.path / "checkpoint-2")}}
    )
    assert (distill(config).student / "model.safetensors").read_bytes() == weights


def test_bad_settings_stop_before_anything_is_written(run_tree, world, tmp_path) -> None:
    def refused(words: str, verb=distill, **changes) -> None:
        tree = {key: dict(value) if isinstance(value, dict) else value for key, value in run_tree.items()}
        for key, value in changes.items():
            tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
        with pytest.raises(SettingError, match=words):
            verb(parse(tree))
        assert not (tmp_path / "run").exists()

    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    refused(r"bad\.jsonl.*line 2", data={"train": str(bad)})
    refused("missing", data={"train": str(tmp_path / "missing.jsonl")})
    refused("needs a `teacher` section", teacher=None, student={"tokenizer": str(world / "teacher")})
    refused("did you mean 'adam_beta2'", training={"adam_beta22": 0.9})
    refused("did you mean n_layer", student={"config": {**run_tree["student"]["config"], "n_layers": 3}})
    refused("no row of|no row is left", data={"label_fraction": 0.0, "unlabelled": "drop"})
    file = tmp_path / "file"
    file.write_text("")
    refused("is a file", output=str(file))


def test_a_token_that_the_teacher_lacks_is_named_with_its_row(run_tree, world, tmp_path) -> None:
    from tiny import byte_tokenizer, tiny_gpt2

    model, tokenizer = tiny_gpt2(5), byte_tokenizer()
    tokenizer.add_tokens(["<extra>"])
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "wider")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": "<extra>"}\n')
    run_tree["student"] = {"kind": "pretrained", "model": str(tmp_path / "wider")}
    run_tree["data"]["train"] = str(data)
    with pytest.raises(SettingError, match=r"rows\.jsonl, line 2: token 258 lies beyond the 258 ids"):
        distill(parse(run_tree))
    assert not (tmp_path / "run").exists()


def test_warm_start_of(run_tree, world) -> None:
    def warm(**student):
        return warm_start_of(parse(run_tree | {"student": student}))

    scratch = {"kind": "from_scratch", "config": {"model_type": "gpt2"}}
    pretrained = {"kind": "pretrained", "model": str(world / "pretrained")}
    assert warm(**scratch).epochs == 1
    assert warm(**scratch, warm_start=False) is None
    assert warm(**pretrained) is None
    assert warm(**pretrained, warm_start=True).epochs == 1
    assert warm(**pretrained, warm_start={"epochs": 0.5}).epochs == 0.5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_tree["student"]["warm_start"] = True
        run_tree["training"]["max_steps"] = 1
        sft(parse(run_tree))
    assert any(issubclass(w.category, SettingWarning) and "no effect in sft" in str(w.message) for w in caught)


def test_real_pronunciation_run(shared, repository, tmp_path) -> None:
    """The recipe on real data, ten steps of it."""
    overrides = [f"output={tmp_path / 'g2p'}", "data.max_rows=400", "training.max_steps=10", "training.logging_steps=5"]
    overrides += ["training.per_device_train_batch_size=16", "student.warm_start.max_steps=10"]
    folder = distill(load(repository / "recipes" / "g2p.yaml", overrides))
    lines = read_json_lines(folder.metrics_file)
    assert [line["step"] for line in lines] == [5, 10]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert folder.record()["data"] == {"labelled": 20, "answered by the teacher": 380}
    assert json.loads((folder.student / "config.json").read_text())["num_hidden_layers"] == 2
    assert yaml.safe_load(folder.run_file.read_text())["training"]["max_steps"] == 10


@pytest.mark.parametrize(("alpha", "warns"), [(-3, True), (-1, False)])
def test_real_start_from_random_weights(alpha, warns, shared, repository, tmp_path, recwarn) -> None:
    """From random weights α = −3 learns no word of this task, α = −1 a third of them."""
    overrides = [f"output={tmp_path / 'g2p'}", "data.max_rows=100", "data.label_fraction=1", "training.max_steps=1"]
    overrides += ["training.per_device_train_batch_size=64", "student.warm_start=false", f"objective.alpha={alpha}"]
    distill(load(repository / "recipes" / "g2p.yaml", overrides))
    assert any("learns through the assistant alone" in str(w.message) for w in recwarn) is warns
