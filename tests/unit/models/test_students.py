"""Students: given, from scratch, cut out of a teacher; with adapters; written whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from amidkd.config import DepthPrunedStudent, FromScratchStudent, LoraConfig, PretrainedStudent
from amidkd.errors import SettingError
from amidkd.models import load_model, load_tokenizer, make_student, save_student, student_tokenizer
from amidkd.models.prune import kept_layers
from tiny_models import tiny_model

SHAPE = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(37))]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def logits(model: Any) -> torch.Tensor:
    training = model.training
    with torch.no_grad():
        found = model.eval()(input_ids=torch.tensor([[3, 5, 7, 11, 12]]), use_cache=False).logits
    model.train(training)
    return found


def scratch(tokenizer: Any, seed: int = 0, **fields: Any) -> Any:
    return make_student(FromScratchStudent(config={**SHAPE, **fields}), tokenizer=tokenizer, seed=seed)


def test_which_tokenizer() -> None:
    assert student_tokenizer(PretrainedStudent(model="m"), "t") == "m"
    assert student_tokenizer(FromScratchStudent(config=SHAPE), "t") == "t"
    assert student_tokenizer(FromScratchStudent(config=SHAPE, tokenizer="own"), "t") == "own"
    assert student_tokenizer(DepthPrunedStudent(layers=2), "t") == "t"
    with pytest.raises(SettingError, match="teacher section"):
        student_tokenizer(FromScratchStudent(config=SHAPE), None)


def test_from_scratch_takes_vocabulary_and_ids_from_the_tokenizer(tokenizer: Any) -> None:
    model = scratch(tokenizer)
    config = model.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (41, 1, 2, 0)
    assert model.training
    assert scratch(tokenizer, vocab_size=64).config.vocab_size == 64
    with pytest.raises(SettingError, match=r"vocab_size: 40 is smaller than the tokenizer's 41"):
        scratch(tokenizer, vocab_size=40)


def test_pad_borrowed_from_eos_gets_its_gradient(tokenizer: Any) -> None:
    import copy

    borrowed = copy.deepcopy(tokenizer)
    borrowed.pad_token = borrowed.eos_token
    model = scratch(borrowed)
    model(input_ids=torch.tensor([[5, 2, 6]])).logits.logsumexp(-1).sum().backward()
    assert float(model.get_input_embeddings().weight.grad[2].abs().sum()) > 0


def test_the_seed_decides_the_weights_and_nothing_else_moves(tokenizer: Any) -> None:
    before = torch.get_rng_state()
    first = logits(scratch(tokenizer, seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(logits(scratch(tokenizer, seed=1)), first)
    assert not torch.equal(logits(scratch(tokenizer, seed=2)), first)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, r"no 'lama'; did you mean .*llama"),
        ({"num_hidden_layer": 2}, r"num_hidden_layer: llama has no such field; did you mean num_hidden_layers"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 33}, "not a multiple of the number of attention heads"),
    ],
)
def test_bad_shapes_are_named(tokenizer: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        scratch(tokenizer, **fields)
    with pytest.raises(SettingError, match="model_type"):
        make_student(FromScratchStudent(config={"hidden_size": 8}), tokenizer=tokenizer, seed=0)


def test_other_names_of_fields_are_accepted(tokenizer: Any) -> None:
    assert scratch(tokenizer, rope_theta=500.0).config.rope_parameters["rope_theta"] == 500.0
    config = FromScratchStudent(config={"model_type": "gpt2", "hidden_size": 32, "n_layer": 2, "n_head": 4})
    assert make_student(config, tokenizer=tokenizer, seed=0).config.n_embd == 32


@pytest.mark.parametrize(
    ("layers", "of", "kept"),
    [(1, 5, [0]), (2, 5, [0, 4]), (3, 5, [0, 2, 4]), (4, 12, [0, 4, 7, 11]), (5, 5, [0, 1, 2, 3, 4])],
)
def test_kept_layers(layers: int, of: int, kept: list[int]) -> None:
    assert kept_layers(layers, of) == kept


def test_kept_layers_are_distinct_and_end_at_the_ends() -> None:
    for of in range(2, 40):
        for layers in range(2, of + 1):
            kept = kept_layers(layers, of)
            assert len(set(kept)) == layers
            assert (kept[0], kept[-1]) == (0, of - 1)


@pytest.mark.parametrize("family", ["llama_tied", "llama_untied", "gpt2", "gpt_neox", "gemma2", "opt"])
def test_all_layers_kept_is_the_teacher(family: str, tokenizer: Any) -> None:
    teacher = tiny_model(family)
    layers = teacher.config.num_hidden_layers
    student = make_student(DepthPrunedStudent(layers=layers), tokenizer=tokenizer, seed=0, teacher_model=teacher)
    assert torch.equal(logits(student), logits(teacher))
    theirs = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in student.parameters()}
    assert all(parameter.requires_grad for parameter in student.parameters())


def _layers(model: Any) -> torch.nn.ModuleList:
    return next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gpt_neox"])
def test_pruned_student_is_the_teacher_without_the_middle_layer(family: str, tokenizer: Any) -> None:
    teacher = tiny_model(family)
    student = make_student(DepthPrunedStudent(layers=2), tokenizer=tokenizer, seed=0, teacher_model=teacher)
    layers = _layers(teacher)
    del layers[1]
    teacher.config.num_hidden_layers = 2
    assert len(_layers(student)) == 2
    torch.testing.assert_close(logits(student), logits(teacher))


def test_lists_with_an_entry_a_layer_are_cut_too(tokenizer: Any) -> None:
    types = ["sliding_attention", "full_attention", "full_attention"]
    teacher = tiny_model("gemma2", layer_types=types)
    student = make_student(DepthPrunedStudent(layers=2), tokenizer=tokenizer, seed=0, teacher_model=teacher)
    assert student.config.layer_types == ["sliding_attention", "full_attention"]
    assert [layer.self_attn.layer_idx for layer in _layers(student)] == [0, 1]


def test_pruning_keeps_the_type_or_changes_it(tokenizer: Any) -> None:
    teacher = tiny_model("llama_tied").to(torch.bfloat16)
    for dtype, wanted in (("auto", torch.bfloat16), ("float32", torch.float32)):
        config = DepthPrunedStudent(layers=2, dtype=dtype)
        assert make_student(config, tokenizer=tokenizer, seed=0, teacher_model=teacher).dtype == wanted


def test_frozen_teacher_gives_a_trainable_student(tokenizer: Any) -> None:
    teacher = tiny_model("llama_tied").requires_grad_(False)
    student = make_student(DepthPrunedStudent(layers=2), tokenizer=tokenizer, seed=0, teacher_model=teacher)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_more_layers_than_the_teacher_has(tokenizer: Any) -> None:
    with pytest.raises(SettingError, match=r"student\.layers: 4, but the teacher has 3"):
        make_student(DepthPrunedStudent(layers=4), tokenizer=tokenizer, seed=0, teacher_model=tiny_model("llama_tied"))
    with pytest.raises(SettingError, match="add a teacher section"):
        make_student(DepthPrunedStudent(layers=2), tokenizer=tokenizer, seed=0)


def test_pretrained_must_fit_its_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    tiny_model("llama_tied").save_pretrained(tmp_path)
    student = make_student(PretrainedStudent(model=str(tmp_path)), tokenizer=tokenizer, seed=0)
    assert torch.equal(logits(student), logits(tiny_model("llama_tied")))
    import copy

    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["w99"])
    with pytest.raises(SettingError, match="41 rows, but its tokenizer has ids up to 41"):
        make_student(PretrainedStudent(model=str(tmp_path)), tokenizer=grown, seed=0)


def lora_student(tokenizer: Any, folder: Path, *, family: str = "llama_tied", **fields: Any) -> Any:
    pytest.importorskip("peft")
    tiny_model(family).save_pretrained(folder)
    config = PretrainedStudent(model=str(folder), lora=LoraConfig(rank=2, alpha=8.0, **fields))
    return make_student(config, tokenizer=tokenizer, seed=0)


def test_lora_trains_adapters_alone_from_the_model_itself(tokenizer: Any, tmp_path: Path) -> None:
    model = lora_student(tokenizer, tmp_path)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(logits(model), logits(tiny_model("llama_tied")))
    with pytest.raises(SettingError, match=r"target_modules.*q_proj"):
        lora_student(tokenizer, tmp_path, target_modules=["qq_proj"])


@pytest.mark.parametrize("family", ["llama_tied", "llama_untied", "gpt2"])
def test_saving_merges_a_copy(family: str, tokenizer: Any, tmp_path: Path) -> None:
    model = lora_student(tokenizer, tmp_path / "base", family=family)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    state, said = {k: v.clone() for k, v in model.state_dict().items()}, logits(model)
    save_student(model, tokenizer, tmp_path / "student")
    assert torch.equal(logits(model), said)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    saved = load_model(tmp_path / "student")
    assert not hasattr(saved, "peft_config")
    torch.testing.assert_close(logits(saved), said, rtol=1e-4, atol=1e-4)
    assert float((said - logits(tiny_model(family))).abs().max()) > 0.1
    save_student(model, tokenizer, tmp_path / "adapter", merge_lora=False)
    apart = load_model(tmp_path / "base", adapter=tmp_path / "adapter", merge_adapter=False)
    torch.testing.assert_close(logits(apart), said)


def test_saved_folder_is_whole(tokenizer: Any, tmp_path: Path) -> None:
    model = scratch(tokenizer)
    save_student(model, tokenizer, tmp_path / "student")
    names = {path.name for path in (tmp_path / "student").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert torch.equal(logits(load_model(tmp_path / "student")), logits(model))
    assert load_tokenizer(tmp_path / "student").get_vocab() == tokenizer.get_vocab()
    assert json.loads((tmp_path / "student" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert model.training


def test_a_failure_leaves_the_old_folder(tokenizer: Any, tmp_path: Path) -> None:
    model = scratch(tokenizer)
    save_student(model, tokenizer, tmp_path / "student")

    class Full:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_student(scratch(tokenizer, seed=5), Full(), tmp_path / "student")
    assert torch.equal(logits(load_model(tmp_path / "student")), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_settings_of_generation_that_contradict_each_other_do_not_stop_saving(tokenizer: Any, tmp_path: Path) -> None:
    """Published models have them: a temperature with sampling off."""
    teacher = tiny_model("llama_tied")
    teacher.generation_config.do_sample = False
    teacher.generation_config.temperature = 0.6
    model = make_student(DepthPrunedStudent(layers=2), tokenizer=tokenizer, seed=0, teacher_model=teacher)
    save_student(model, tokenizer, tmp_path / "student")
    written = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert (written["temperature"], written["do_sample"]) == (0.6, True)
    assert teacher.generation_config.do_sample is False
