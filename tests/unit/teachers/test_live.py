"""The live teacher: its signal, its proof before loading, its fingerprint, and teacher = student."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.data import Sequences
from amidkd.errors import SettingError
from amidkd.models import load_model, load_tokenizer
from amidkd.signals import Hidden
from amidkd.teachers import LiveTeacher, Teacher, make_live, self_distillation_loss
from tiny_models import tiny_model


def sequences(tokens: torch.Tensor, attention: torch.Tensor, targets: torch.Tensor) -> Sequences:
    index = torch.arange(len(tokens))
    return Sequences(tokens, attention, targets, rows_B=index, origin_B=torch.zeros_like(index))


def rows(tokenizer: Any, *words: str) -> Sequences:
    texts = [f"<s>{word}<sep>" for word in words]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] + [9, 10, 2] for text in texts]
    width = max(map(len, encoded))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in encoded])
    lengths = torch.tensor([[len(row)] for row in encoded])
    position = torch.arange(width)[None]
    return sequences(tokens, (position < lengths).long(), (position < lengths) & (position >= lengths - 3))


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    return shared / "models" / "g2p-st64_ce"


@pytest.fixture(scope="module")
def tokenizer(source: Path) -> Any:
    return load_tokenizer(source)


@pytest.fixture(scope="module")
def teacher(source: Path, tokenizer: Any) -> LiveTeacher:
    return make_live(LiveTeacherConfig(model=str(source)), student_tokenizer=tokenizer, device="cpu")


def test_signal_is_the_models_logits_at_supervised_positions(teacher: LiveTeacher, tokenizer: Any) -> None:
    batch = rows(tokenizer, "hello", "a", "worlds")
    signal = teacher.signal(batch)
    assert isinstance(signal, Hidden)
    assert isinstance(teacher, Teacher)
    assert teacher.vocab_size == 100
    assert signal.states.shape[0] == 9
    assert not signal.states.requires_grad
    with torch.no_grad():
        found = signal.states @ signal.weight.T
        wanted = teacher.model(input_ids=batch.tokens_BT, attention_mask=batch.attention_BT).logits
    torch.testing.assert_close(found, wanted[batch.predicts_BT()], rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_signal_enters_a_students_graph(teacher: LiveTeacher, tokenizer: Any) -> None:
    signal = teacher.signal(rows(tokenizer, "hello"))
    student = torch.zeros_like(signal.states, requires_grad=True)
    (student @ signal.weight.T).square().sum().backward()
    assert student.grad is not None


def test_autocast_outside_does_not_reach_the_teacher(teacher: LiveTeacher, tokenizer: Any) -> None:
    batch = rows(tokenizer, "hello")
    wanted = teacher.signal(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher.signal(batch)
    assert found.states.dtype == torch.float32
    assert torch.equal(found.states, wanted.states)


def test_dropout_is_off_whatever_the_mode(tokenizer: Any) -> None:
    live = LiveTeacher(tiny_model("gpt2"), tokenizer, vocab_size=41)
    batch = sequences(torch.tensor([[4, 5, 6]]), torch.ones(1, 3).long(), torch.tensor([[False, True, True]]))
    wanted = live.signal(batch).states
    live.model.train()
    assert torch.equal(live.signal(batch).states, wanted)


def test_another_tokenizer_is_refused_before_weights_are_read(shared: Path, tokenizer: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(shared / "models" / "stories260K-hf", tmp_path / "other")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SettingError, match="different tokenizers"):
        make_live(LiveTeacherConfig(model=str(folder)), student_tokenizer=tokenizer, device="cpu")


def test_padded_heads_of_different_widths_just_work(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    model = load_model(source)
    model.resize_token_embeddings(128, mean_resizing=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    live = make_live(LiveTeacherConfig(model=str(tmp_path)), student_tokenizer=tokenizer, device="cpu")
    assert (live.vocab_size, live.backbone.width) == (100, 128)


def test_head_smaller_than_the_vocabulary(tokenizer: Any) -> None:
    with pytest.raises(SettingError, match="41 rows, but its tokenizer shares 100 ids"):
        LiveTeacher(tiny_model("llama_tied"), tokenizer, vocab_size=100)


def test_a_token_that_the_teacher_does_not_have(teacher: LiveTeacher, tokenizer: Any) -> None:
    batch = rows(tokenizer, "hello", "a")
    padded = batch.tokens_BT.masked_fill(batch.attention_BT == 0, 500)
    same = teacher.signal(sequences(padded, batch.attention_BT, batch.targets_BT))
    assert torch.equal(same.states, teacher.signal(batch).states)
    batch.tokens_BT[0, 1] = 100
    with pytest.raises(SettingError, match=r"token 100 .* beyond the 100 ids"):
        teacher.signal(batch)


def test_fingerprint_follows_the_weights_not_the_folder(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    def fingerprint(folder: Path, **settings: Any) -> str:
        config = LiveTeacherConfig(model=str(folder), **settings)
        return make_live(config, student_tokenizer=tokenizer, device="cpu").fingerprint()

    wanted = fingerprint(source)
    moved = shutil.copytree(source, tmp_path / "moved")
    assert fingerprint(moved) == wanted
    assert fingerprint(moved, dtype="bfloat16") != wanted
    model = load_model(moved)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    model.save_pretrained(moved)
    assert fingerprint(moved) != wanted


def test_fingerprint_of_a_model_without_a_folder(tokenizer: Any) -> None:
    prints = [LiveTeacher(tiny_model("gpt2", seed=seed), tokenizer, vocab_size=41).fingerprint() for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_adapter_changes_signal_and_fingerprint(source: Path, tokenizer: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(load_model(source), peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path)
    batch = rows(tokenizer, "hello")
    made = {}
    for merge in (True, False):
        config = LiveTeacherConfig(model=str(source), adapter=str(tmp_path), merge_adapter=merge)
        made[merge] = make_live(config, student_tokenizer=tokenizer, device="cpu")
    torch.testing.assert_close(made[True].signal(batch).states, made[False].signal(batch).states, rtol=1e-4, atol=1e-4)
    plain = make_live(LiveTeacherConfig(model=str(source)), student_tokenizer=tokenizer, device="cpu")
    assert float((made[True].signal(batch).states - plain.signal(batch).states).abs().max()) > 1e-2
    assert len({made[True].fingerprint(), made[False].fingerprint(), plain.fingerprint()}) == 3


def test_teacher_as_its_own_student_loses_nothing(teacher: LiveTeacher, tokenizer: Any) -> None:
    batch = rows(tokenizer, "hello", "a", "worlds")
    assert abs(self_distillation_loss(teacher, batch)) < 1e-6


def test_a_head_read_wrongly_shows_as_a_loss(source: Path, tokenizer: Any) -> None:
    live = make_live(LiveTeacherConfig(model=str(source)), student_tokenizer=tokenizer, device="cpu")
    live.backbone._scale = 1.1
    assert self_distillation_loss(live, rows(tokenizer, "hello", "a", "worlds")) > 1e-4


@pytest.mark.gpu
def test_teacher_on_another_device_answers_on_the_batchs(source: Path, tokenizer: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = LiveTeacherConfig(model=str(source), device="cuda")
    live = make_live(config, student_tokenizer=tokenizer, device="cpu")
    signal = live.signal(rows(tokenizer, "hello"))
    assert {signal.states.device.type, signal.weight.device.type} == {"cpu"}
