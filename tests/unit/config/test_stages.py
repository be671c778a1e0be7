"""Stages: what a stage takes over, what it replaces, and what it may not say."""

from pathlib import Path

import pytest
import yaml

from amidkd.config import dump_yaml, final_config, load, parse, stage_configs
from amidkd.errors import SettingError

RUN = """
student: {model: ./start, lora: {rank: 4, merge: false}, warm_start: true}
teacher: ./teacher
data: {train: ./rows.jsonl}
objective: {divergence: {name: alpha_beta, a: 0.2, b: 0.7}, alpha: -1}
policy: {kind: mixed, on_policy_fraction: 0.3}
training: {max_steps: 7, adam_beta2: 0.9, resume_from_checkpoint: true}
evaluation: {after_training: true}
output: ./out
stages:
  - name: warm
    policy: warmup
    training: {max_steps: 3}
  - policy: {on_policy_fraction: 0.2}
    objective: {terms: [{weight: 1, between: "teacher||student"}]}
    data: {train: ./other.jsonl}
    verb: distill
  - name: last
    policy: contrastive
    objective: {divergence: kl}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_each_stage_is_the_run_file_with_its_own_settings(run_file, tmp_path) -> None:
    warm, second, last = stage_configs(load(run_file))
    assert (warm.policy.kind, warm.training.max_steps, warm.training.model_extra) == ("warmup", 3, {"adam_beta2": 0.9})
    assert (second.policy.kind, second.policy.on_policy_fraction, second.training.max_steps) == ("mixed", 0.2, 7)
    # The stage's form of the objective holds, and a divergence of another name has no parameters of the old one.
    assert second.objective.terms is not None
    assert second.objective.terms[0].between == "teacher||student"
    assert (last.objective.divergence.name, last.objective.divergence.a, last.objective.alpha) == ("kl", None, -1.0)
    assert last.objective.student_text is not None, "what the contrastive policy fills in"
    # Paths are relative to the file in stages as well.
    assert (warm.data.train, second.data.train) == (str(tmp_path / "rows.jsonl"), str(tmp_path / "other.jsonl"))


def test_a_stage_starts_from_the_last_ones_student(run_file, tmp_path) -> None:
    stages = stage_configs(load(run_file))
    out = tmp_path / "out"
    assert [stage.output.folder for stage in stages] == [str(out / "stages/warm"), str(out / "stages/2"), str(out)]
    models = [getattr(stage.student, "model", None) for stage in stages]
    assert models == [str(tmp_path / "start"), str(out / "stages/warm/student"), str(out / "stages/2/student")]
    assert [stage.student.warm_start for stage in stages] == [True, None, None]
    # The next stage needs a whole model; adapters alone and the evaluation are the last one's.
    assert [stage.student.lora.merge for stage in stages] == [True, True, False]
    assert [stage.student.lora.rank for stage in stages] == [4, 4, 4]
    assert [stage.evaluation.after_training for stage in stages] == [False, False, True]
    assert final_config(load(run_file)) == stages[-1]


def test_without_stages_the_run_is_the_only_one(run_file) -> None:
    tree = yaml.safe_load(RUN)
    del tree["stages"]
    config = parse(tree)
    assert stage_configs(config) == [config]
    assert "stages" not in yaml.safe_load(dump_yaml(config))


def test_the_resolved_file_reads_back_the_same(run_file, tmp_path) -> None:
    config = load(run_file)
    again = tmp_path / "elsewhere" / "run.yaml"
    again.parent.mkdir()
    again.write_text(dump_yaml(config))
    assert load(again) == config
    assert yaml.safe_load(dump_yaml(config))["stages"][0] == {
        "name": "warm",
        "verb": "distill",
        "policy": config.stages[0].policy.model_dump(mode="json"),
        "training": {"max_steps": 3},
    }
    longer = load(again, ["training.max_steps=9", "evaluation.max_rows=5"])
    assert [stage.training.max_steps for stage in stage_configs(longer)] == [3, 9, 9]
    assert final_config(longer).evaluation.max_rows == 5
    moved = load(again, [f"output={tmp_path / 'moved'}"])
    assert stage_configs(moved)[1].student.model == str(tmp_path / "moved/stages/warm/student")


def test_overrides_reach_all_stages_or_one(run_file) -> None:
    overrides = [
        "training.seed=5",
        "stages.1.training.max_steps=4",
        "stages.last.policy.beta=0.5",
        "stages.2.policy=on_policy",
    ]
    warm, second, last = stage_configs(load(run_file, overrides))
    assert [stage.training.seed for stage in (warm, second, last)] == [5, 5, 5]
    assert (warm.training.max_steps, last.policy.beta, second.policy.kind) == (4, 0.5, "on_policy")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.1.polcy=mixed", r"stages\[1\]\.polcy: unknown key; did you mean 'policy'"),
        ("stages.1.policy.reject_treshold=0.1", r"\.reject_treshold: unknown key; did you mean 'reject_threshold'"),
        ("stages.2.training.learning_rate=-1", r"stages\[2\]\.training\.learning_rate: .*greater than 0; got -1"),
        ("stages.2.student.model=a", r"stages\[2\]\.student: .*starts from the last one's student"),
        ("stages.1.student.lora.merge=false", r"stages\[1\]\.student\.lora\.merge: .*must be merged"),
        ("stages.2.output=x", r"stages\[2\]\.output: not a stage's setting"),
        ("stages.2.training.resume_from_checkpoint=true", r"resume_from_checkpoint: not a stage's setting"),
        ("stages.2.verb=distil", r"stages\[2\]\.verb: .*did you mean 'distill'"),
        ("stages.2.name=a/b", r"stages\[2\]\.name: 'a/b' is not a plain folder name"),
        ("stages.2.name=1", r"stages\[2\]\.name: '1' is a number, but not this stage's"),
        ("stages.2.name=warm", r"stages\[2\]\.name: 'warm' is another stage's name"),
        ("stages.4.policy=mixed", r"no stage '4'"),
        ("stages=[]", r"stages: must be a list of at least one"),
        ("data.max_length=0", r"^[^[]*data\.max_length: Input"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_stage(run_file, override, said) -> None:
    with pytest.raises(SettingError, match=said):
        load(run_file, [override])


def test_a_stage_that_distils_needs_a_teacher() -> None:
    tree = {"student": "s", "data": {"train": "t"}, "output": "o", "stages": [{"verb": "sft"}, {}]}
    with pytest.raises(SettingError, match=r"stages\[2\]\.teacher: distill needs one"):
        parse(tree)
