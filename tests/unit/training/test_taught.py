"""Runs by every kind of teacher: the same numbers as from memory, and clear errors before work starts."""

import copy
import json
import shutil
import warnings
from typing import Any

import pytest
import torch
from tiny import tiny_gpt2

from amidkd.config import load, parse
from amidkd.errors import SettingError, TeacherError
from amidkd.record import RunFolder, read_json_lines
from amidkd.teachers.cached import CachedTeacher
from amidkd.training import distill, run_cache, sft
from amidkd.training.metrics import TIME_FIELDS
from amidkd.training.teaching import check_teacher


@pytest.fixture
def tree(run_tree) -> dict[str, Any]:
    run_tree["teacher"] = {"model": run_tree["teacher"]}
    run_tree["student"]["warm_start"] = False
    run_tree["training"] |= {"max_steps": 5, "logging_steps": 1, "save_steps": 2}
    return run_tree


def run(tree: dict[str, Any], folder: Any, **sections: Any) -> RunFolder:
    return distill(parse({**copy.deepcopy(tree), "output": str(folder), **sections}))


def curve(folder: RunFolder) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key not in TIME_FIELDS}
        for line in read_json_lines(folder.metrics_file)
    ]


def losses(folder: RunFolder) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in read_json_lines(folder.metrics_file)], dtype=torch.float64)


@pytest.fixture
def second_teacher(world, tmp_path) -> str:
    """A second teacher, whose head is padded to another width."""
    from transformers import AutoTokenizer

    folder = tmp_path / "second"
    model = tiny_gpt2(5, width=16, layers=1)
    model.resize_token_embeddings(model.config.vocab_size + 13)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("form", [{"format": "top_k", "top_k": 100_000}, {"format": "hidden"}])
def test_a_whole_cache_gives_the_live_curve(tree, tmp_path, form) -> None:
    live = run(tree, tmp_path / "live")
    cached = {**tree["teacher"], "kind": "cached", "folder": str(tmp_path / "cache"), **form}
    run_cache(parse({**tree, "teacher": cached}))
    found = run(tree, tmp_path / "cached", teacher=cached)
    # Log-probabilities in float16 and states in bfloat16 have 11 and 8 bits.
    torch.testing.assert_close(losses(found), losses(live), rtol=0, atol=3e-3)
    assert not torch.equal(losses(found), losses(live))
    assert [line["tokens"] for line in curve(found)] == [line["tokens"] for line in curve(live)]


def test_a_truncated_cache_never_has_a_negative_loss_and_less_is_left_out_the_nearer_it_is(tree, tmp_path) -> None:
    tree["objective"] = {"between": "teacher||student"}
    live, first = losses(run(tree, tmp_path / "live")), []
    for k in (24, 200):
        cached = {**tree["teacher"], "kind": "cached", "folder": str(tmp_path / f"cache{k}"), "top_k": k}
        run_cache(parse({**tree, "teacher": cached}))
        found = losses(run(tree, tmp_path / f"cached{k}", teacher=cached))
        assert bool((found > 0).all())
        first.append(float(found[0]))
    # Coarse-graining never increases an f-divergence of the same two distributions.
    assert first[0] < first[1] < float(live[0])


def test_text_that_the_teacher_wrote_is_cached_and_read_without_its_weights(tree, world, tmp_path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(world / "teacher", teacher)
    tree["data"] |= {"label_fraction": 0.5}
    tree |= {"teacher": {"model": str(teacher)}, "output": str(tmp_path / "run")}
    run_cache(parse(tree))
    tree["teacher"] |= {"kind": "cached"}
    (teacher / "model.safetensors").rename(teacher / "gone")
    with pytest.raises(SettingError, match=r"teacher"):
        # The folder no longer holds what the cache was made of.
        distill(parse(tree))
    tree["student"]["tokenizer"] = str(teacher)
    tree["teacher"] = {"kind": "cached"}
    record = distill(parse(tree)).record()
    assert record["data"] == {"labelled": 11, "answered by the teacher": 11}
    assert "teacher" not in record["models"]


def test_override_turns_a_live_teacher_into_its_cache(tree, tmp_path) -> None:
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**tree, "output": "here"}))
    folder = run_cache(load(path))
    assert folder == tmp_path / "here" / "teacher-cache"
    assert losses(distill(load(path, ["teacher.kind=cached"])))[-1] > 0


def test_rows_that_are_not_in_the_cache_stop_a_run_before_it_starts(tree, world, tmp_path) -> None:
    cached = {**tree["teacher"], "kind": "cached", "folder": str(tmp_path / "cache")}
    run_cache(parse({**tree, "teacher": cached, "data": {**tree["data"], "max_rows": 7}}))
    with pytest.raises(
        SettingError, match=r"train\.jsonl, line 8: the row, or a supervised token of it, is not in the cache"
    ):
        run(tree, tmp_path / "run", teacher=cached)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_cached_teacher_resumes_exactly(tree, tmp_path) -> None:
    cached = {**tree["teacher"], "kind": "cached", "folder": str(tmp_path / "cache"), "top_k": 8}
    run_cache(parse({**tree, "teacher": cached}))
    whole = run(tree, tmp_path / "whole", teacher=cached)
    run(tree, tmp_path / "cut", teacher=cached, training={**tree["training"], "max_steps": 5})
    for path in (tmp_path / "cut").glob("checkpoint-5"):
        shutil.rmtree(path)
    record = json.loads((tmp_path / "cut" / "record.json").read_text())
    (tmp_path / "cut" / "record.json").write_text(json.dumps({**record, "finished": None}))
    gone_on = run(tree, tmp_path / "cut", teacher=cached, training={**tree["training"], "resume_from_checkpoint": True})
    assert curve(gone_on) == curve(whole)


def test_a_teacher_that_is_gone_leaves_a_checkpoint_from_which_the_run_goes_on(tree, tmp_path, monkeypatch) -> None:
    cached = {**tree["teacher"], "kind": "cached", "folder": str(tmp_path / "cache"), "top_k": 8}
    run_cache(parse({**tree, "teacher": cached}))
    whole = run(tree, tmp_path / "whole", teacher=cached)
    asked, signal = [], CachedTeacher.signal

    def failing(self, sequences):
        asked.append(1)
        # Two forward passes a step: the second of the fourth step.
        if len(asked) == 8:
            raise TeacherError("the disk is gone")
        return signal(self, sequences)

    with monkeypatch.context() as patch:
        patch.setattr(CachedTeacher, "signal", failing)
        with pytest.raises(TeacherError, match=r"(?s)the disk is gone.*before step 4; checkpoint-3 .* holds all steps"):
            run(tree, tmp_path / "cut", teacher=cached)
    assert (tmp_path / "cut" / "checkpoint-3").is_dir()
    again = run(tree, tmp_path / "cut", teacher=cached, training={**tree["training"], "resume_from_checkpoint": True})
    assert curve(again) == curve(whole)


def ensemble(*members: Any, **settings: Any) -> dict[str, Any]:
    return {"kind": "ensemble", "teachers": list(members), **settings}


def test_an_ensemble_of_one_weight_is_that_teacher(tree, second_teacher, tmp_path) -> None:
    first = tree["teacher"]
    alone = run(tree, tmp_path / "alone")
    weighted = run(tree, tmp_path / "both", teacher=ensemble(first, {"model": second_teacher}, weights=[2, 0]))
    torch.testing.assert_close(losses(weighted), losses(alone), rtol=1e-6, atol=0)
    both = run(tree, tmp_path / "uniform", teacher=ensemble(first, {"model": second_teacher}))
    assert (losses(both) - losses(alone)).abs().max() > 1e-3


def test_rows_name_their_teacher(tree, world, second_teacher, tmp_path) -> None:
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text().splitlines()]
    named = tmp_path / "named.jsonl"
    tree["data"] = {**tree["data"], "train": str(named)}
    teachers = ensemble({**tree["teacher"], "name": "a"}, {"model": second_teacher, "name": "b"}, weights="by_row")
    named.write_text("".join(json.dumps({**row, "teacher_id": "a"}) + "\n" for row in rows))
    alone, all_a = run(tree, tmp_path / "alone"), run(tree, tmp_path / "all", teacher=teachers)
    torch.testing.assert_close(losses(all_a), losses(alone), rtol=1e-6, atol=0)
    named.write_text("".join(json.dumps({**row, "teacher_id": "ab"[n % 2]}) + "\n" for n, row in enumerate(rows)))
    mixed = run(tree, tmp_path / "mixed", teacher=teachers)
    assert (losses(mixed) - losses(alone)).abs().max() > 1e-3
    named.write_text("".join(json.dumps({**row, "teacher_id": "abc"[n % 3]}) + "\n" for n, row in enumerate(rows)))
    with pytest.raises(SettingError, match=r"named\.jsonl, line 3: `teacher_id` is 'c'"):
        run(tree, tmp_path / "wrong", teacher=teachers)


def test_dropped_teachers_hang_on_the_step_alone(tree, second_teacher, tmp_path) -> None:
    teacher = ensemble(tree["teacher"], {"model": second_teacher}, drop=0.5)
    whole = run(tree, tmp_path / "whole", teacher=teacher)
    run(tree, tmp_path / "cut", teacher=teacher)
    shutil.rmtree(tmp_path / "cut" / "checkpoint-5")
    record = json.loads((tmp_path / "cut" / "record.json").read_text())
    (tmp_path / "cut" / "record.json").write_text(json.dumps({**record, "finished": None}))
    gone_on = run(
        tree, tmp_path / "cut", teacher=teacher, training={**tree["training"], "resume_from_checkpoint": True}
    )
    assert curve(gone_on) == curve(whole)


def test_weights_are_searched_and_recorded(tree, second_teacher, tmp_path) -> None:
    pytest.importorskip("scipy", reason="needs SciPy (extra ensemble)")
    # The better teacher is trained on the labels.
    trained = sft(parse({**tree, "student": {"kind": "pretrained", "model": tree["teacher"]["model"]},
                         "training": {**tree["training"], "max_steps": 30, "learning_rate": 1e-2},
                         "output": str(tmp_path / "trained")}))  # fmt: skip
    teacher = ensemble({"model": second_teacher}, {"name": "good", "model": str(trained.student)}, weights="search")
    tree["data"] |= {"validation_rows": 6}
    weights = run(tree, tmp_path / "run", teacher=teacher).record()["teacher_weights"]
    assert set(weights) == {"second", "good"}
    assert weights["good"] > 0.9
    assert sum(weights.values()) == pytest.approx(1)


def test_a_chain_of_assistants(tree, tmp_path) -> None:
    shape = {**tree["student"]["config"], "n_embd": 20}
    chain = {
        "stages": [
            {"name": "assistant", "student": {**tree["student"], "config": shape}},
            {"name": "small", "student": tree["student"],
             "teacher": ensemble(tree["teacher"], {"kind": "stage", "stage": "assistant"}, drop=0.2)},
        ]
    }  # fmt: skip
    folder = run(tree, tmp_path / "run", **chain)
    assistant = RunFolder(folder.path / "stages" / "assistant")
    assert json.loads((assistant.student / "config.json").read_text())["n_embd"] == 20
    assert json.loads((folder.student / "config.json").read_text())["n_embd"] != 20
    assert "`teacher` and `assistant`" in (folder.student / "README.md").read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"kind": "cached"}}, r"amidkd cache"),
        ({"teacher": {"kind": "stage", "stage": "big"}}, r"teacher\.kind: stage \(stage: big\)"),
        (
            {"teacher": {"kind": "cached", "model": "TEACHER"}, "policy": {"kind": "on_policy"}},
            r"teacher\.kind: cached with policy\.kind: on_policy: the student writes text while it learns",
        ),
        (
            {"teacher": {"kind": "cached", "model": "TEACHER"}, "objective": {"temperature": 2.0}},
            r"objective\.temperature = 2 with teacher\.format: top_k",
        ),
        (
            {"teacher": ensemble({"model": "TEACHER"}, {"model": "TEACHER"}, weights="search")},
            r"teacher\.weights: search looks at held-out text; name rows in data\.validation",
        ),
        (
            {"teacher": ensemble({"model": "TEACHER"}, {"model": "TEACHER"}, weights="by_row")},
            r"train\.jsonl, line 1: no `teacher_id`",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_work(tree, tmp_path, sections, message) -> None:
    text = json.dumps({**tree, **sections, "output": str(tmp_path / "run")})
    made = tree["teacher"]["model"]
    with pytest.raises(SettingError, match=message):
        distill(parse(json.loads(text.replace("TEACHER", made))))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_cache_of_samples_is_near_the_live_curve_and_for_forward_kl_alone(tree, tmp_path) -> None:
    tree["objective"] = {"between": "teacher||student"}
    live = run(tree, tmp_path / "live")
    cached = {**tree["teacher"], "kind": "cached", "folder": str(tmp_path / "cache"), "format": "samples"}
    cached |= {"top_k": 100, "draws": 400}
    run_cache(parse({**tree, "teacher": cached}))
    found = run(tree, tmp_path / "cached", teacher=cached)
    torch.testing.assert_close(losses(found), losses(live), rtol=0.2, atol=0)
    for wrong, message in (
        ({"between": "student||teacher"}, "samples is for forward KL .* kl between student"),
        ({"between": "teacher||assistant", "alpha": -1}, "samples is for forward KL .* kl between teacher"),
        ({"divergence": "total_variation", "between": "teacher||student"}, "samples is for forward KL"),
        ({**tree["objective"], "weighting": {"by": "disagreement"}}, "the draws do not tell"),
    ):
        with pytest.raises(SettingError, match=message):
            run(tree, tmp_path / "wrong", teacher=cached, objective=wrong)
    with pytest.raises(SettingError, match="samples in an ensemble"):
        run(tree, tmp_path / "wrong", teacher=ensemble(cached, tree["teacher"]))
    with pytest.raises(SettingError, match=r"draws \(teacher\.draws\): 400 there, 7 now"):
        run(tree, tmp_path / "wrong", teacher={**cached, "draws": 7})


@pytest.mark.parametrize(
    ("objective", "warns"),
    [
        ({"between": "student||teacher"}, True),
        ({"between": "teacher||assistant", "divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7}}, True),
        ({"between": "teacher||assistant"}, False),
        ({"between": "student||assistant", "alpha": -1, "lam": 0.9}, False),
    ],
)
def test_objectives_that_weigh_what_is_not_listed_are_warned_of(tree, objective, warns) -> None:
    config = parse({**tree, "teacher": {"kind": "served"}, "objective": objective})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_teacher(config, "distill")
    assert any("tokens that are not listed" in str(warning.message) for warning in caught) is warns
