"""A loss that is not finite stops the run before the weights are touched, and says where and why."""

import pytest
import torch
from one_step import rows
from tiny import VOCABULARY, byte_tokenizer, tiny_gpt2

from amidkd.config import parse
from amidkd.errors import LossError, SettingWarning
from amidkd.maths import Objective
from amidkd.record import RunFolder
from amidkd.signals import Hidden, Logits
from amidkd.teachers import LiveTeacher
from amidkd.training import DistillationTrainer, LossSettings, ScheduledObjective, training_arguments
from amidkd.training.failure import likely_cause


class MaskingTeacher:
    """A teacher that rules out, from the third row on, a token that the student does not."""

    vocab_size = VOCABULARY
    in_process = True

    def __init__(self, masked_rows: set[int]) -> None:
        self._masked = masked_rows

    def signal(self, sequences):
        predicts = sequences.predicts_BT()
        rows_N = sequences.rows_B[:, None].expand_as(predicts)[predicts]
        logits = torch.zeros(len(rows_N), VOCABULARY)
        logits[[int(row) in self._masked for row in rows_N], 7] = -torch.inf
        return Logits(logits)

    def begin_step(self, step):
        pass

    def fingerprint(self) -> str:
        return "masking"


def trainer_of(folder, *, teacher, objective, warn=False, **training):
    settings = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "save_steps": 1, "use_cpu": True}
    config = parse(
        {
            "student": {"kind": "from_scratch", "config": {"model_type": "gpt2"}, "tokenizer": "unused"},
            "data": {"train": "unused"},
            "output": str(folder),
            "training": {**settings, **training},
            "objective": objective,
        }
    )
    return DistillationTrainer(
        student=tiny_gpt2(2),
        tokenizer=byte_tokenizer(),
        arguments=training_arguments(config, folder),
        examples=rows(),
        loss=LossSettings(ScheduledObjective(config.objective, steps=4), vocab_size=VOCABULARY, warn_where_stuck=warn),
        teacher=teacher,
        places=[f"train.jsonl, line {n + 1}" for n in range(8)],
    )


def test_infinite_loss_stops_before_the_step(tmp_path) -> None:
    """Reverse KL against a one-sided mask is truly infinite."""
    teacher, objective = MaskingTeacher({5}), {"between": "student||teacher"}
    trainer = trainer_of(tmp_path, teacher=teacher, objective=objective)
    order = [place for batch in trainer._batches for place in batch]
    step = order.index(5) // 2 + 1
    with pytest.raises(LossError) as caught:
        trainer.fit(None)
    message = str(caught.value)
    assert f"at step {step}" in message
    assert "5 (train.jsonl, line 6)" in message
    assert "student||teacher is infinite where one side gives probability" in message
    saved = RunFolder(tmp_path).checkpoints()
    assert len(saved) == min(2, step - 1)
    if saved:
        assert str(saved[-1]) in message
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())
    unrelated = set(range(8)) - set(order[2 * step - 2 : 2 * step])
    assert not any(f"line {row + 1})" in message for row in unrelated)


def test_overflow_of_the_weights_is_told_from_a_mask(tmp_path) -> None:
    teacher = LiveTeacher(tiny_gpt2(1), byte_tokenizer(), vocab_size=VOCABULARY)
    trainer = trainer_of(
        tmp_path, teacher=teacher, objective={"between": "teacher||student"}, learning_rate=1e38, warmup_steps=0
    )
    with pytest.raises(LossError, match=r"learning_rate"):
        trainer.fit(None)


@pytest.mark.parametrize(
    ("objective", "loss", "words"),
    [
        (Objective(between="student||assistant", alpha=2.0), float("inf"), "α ≥ 1"),
        (Objective(between="teacher||student"), float("inf"), "one side gives probability"),
        (None, float("inf"), "a label to which the student gives probability 0"),
        (Objective(), 1.0, "gradient overflows while the loss is finite"),
        (Objective(), float("nan"), "between hidden states and loss"),
    ],
)
def test_causes_of_a_sound_pass(objective, loss, words) -> None:
    signal = Hidden(torch.zeros(3, 4), torch.zeros(5, 4))
    assert words in likely_cause(student=signal, teacher=signal, objective=objective, loss=loss, sound_weights=True)


def test_causes_in_the_models() -> None:
    sound, broken = (Hidden(torch.full((3, 4), fill), torch.zeros(5, 4)) for fill in (0.0, float("inf")))

    def cause(student, teacher, *, sound_weights=True):
        objective, loss = Objective(), float("nan")
        return likely_cause(
            student=student, teacher=teacher, objective=objective, loss=loss, sound_weights=sound_weights
        )

    assert "teacher.dtype" in cause(sound, broken)
    assert "student's hidden states" in cause(broken, sound)
    assert "student's weights" in cause(broken, broken, sound_weights=False)


@pytest.mark.parametrize(("alpha", "warns"), [(-5.0, True), (-3.0, True), (1.0, False)])
def test_a_start_where_nothing_can_be_learnt_warns(alpha, warns, tmp_path, recwarn) -> None:
    teacher = LiveTeacher(tiny_gpt2(1, width=64), byte_tokenizer(), vocab_size=VOCABULARY)
    teacher.model.lm_head.weight.data *= 20  # sure of itself, as trained models are
    trainer = trainer_of(tmp_path, teacher=teacher, objective={"alpha": alpha, "lam": 0.1}, warn=True, max_steps=1)
    trainer.fit(None)
    found = [str(w.message) for w in recwarn if issubclass(w.category, SettingWarning)]
    assert len(found) == warns
    if warns:
        assert "student.warm_start: true" in found[0]
        assert "9e-6 at α = −5" in found[0]
