import pytest

from amidkd.config import parse
from amidkd.errors import SettingError
from amidkd.training import check_training_settings, training_arguments
from amidkd.training.arguments import steps_of, warmup_of


def run(**training):
    return parse(
        {
            "student": "gpt2",
            "data": {"train": "train.jsonl"},
            "output": "out",
            "training": {"use_cpu": True, **training},
        }
    )


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"adam_beta22": 0.9}, "adam_beta22.*did you mean 'adam_beta2'"),
        ({"learning_rates": 0.9}, "did you mean 'learning_rate'"),
        ({"adam_beta2": "high"}, "training.adam_beta2: .*valid number.*'high'"),
        ({"dataloader_num_workers": 1.5}, "training.dataloader_num_workers"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
        ({"optim": "adamm"}, "adamm"),
        ({"max_steps": 0}, "max_steps"),
        ({"save_strategy": "best"}, "save_strategy"),
        ({"output_dir": "elsewhere"}, "output.folder"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"label_smoothing_factor": 0.1}, "objective"),
        ({"fsdp": "full_shard"}, "data parallelism"),
        ({"warmup_ratio": 0.1}, "warmup_steps below 1"),
    ],
)
def test_bad_settings_name_the_key_and_the_way_out(training, words) -> None:
    with pytest.raises(SettingError, match=words):
        check_training_settings(run(**training))


def test_what_only_the_machine_can_tell_is_told_at_the_start(tmp_path) -> None:
    config = run(fp16=True, bf16=True)
    check_training_settings(config)
    with pytest.raises(SettingError, match="fp16 and bf16"):
        training_arguments(config, tmp_path)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        check_training_settings(run(adam_beta22=0.9, output_dir="x", seeed=3))
    assert len(str(caught.value).splitlines()) == 3


def test_any_field_may_be_given(tmp_path) -> None:
    config = run(adam_beta2=0.95, optim="sgd", dataloader_num_workers=0, max_grad_norm=0.5, lr_scheduler_type="linear")
    check_training_settings(config)
    arguments = training_arguments(config, tmp_path, learning_rate=3.0)
    assert (arguments.adam_beta2, arguments.max_grad_norm, arguments.learning_rate) == (0.95, 0.5, 3.0)
    assert arguments.output_dir == str(tmp_path)
    assert not arguments.remove_unused_columns


def test_steps_and_warm_up(tmp_path) -> None:
    arguments = training_arguments(
        run(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_train_epochs=2.5), tmp_path
    )
    # 50 rows are 13 batches, in 5 steps an epoch.
    assert steps_of(arguments, 50) == 13
    assert steps_of(training_arguments(run(max_steps=7), tmp_path), 50) == 7
    assert [warmup_of(value, 130) for value in (0, 0.03, 0.5, 1, 12)] == [0, 4, 65, 1, 12]
