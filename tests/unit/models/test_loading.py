"""Loading: what is given comes, and what cannot be had is named."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amidkd.errors import SettingError, SettingWarning
from amidkd.models import eos_ids_of, load_model, load_tokenizer, pad_id_of, vocabulary_size
from tiny_models import VOCABULARY, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama_untied").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(tiny_model("llama_untied"), peft.LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 5, 7]])).logits


def test_weights_and_types(folder: Path) -> None:
    model = load_model(folder)
    assert not model.training
    assert torch.equal(logits(model), logits(tiny_model("llama_untied")))
    assert load_model(folder, dtype="bfloat16").dtype == torch.bfloat16
    tiny_model("llama_untied").to(torch.bfloat16).save_pretrained(folder)
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, dtype="float32").dtype == torch.float32


def test_adapter_merged_or_apart(folder: Path, adapter: Path) -> None:
    plain, merged = load_model(folder), load_model(folder, adapter=adapter)
    apart = load_model(folder, adapter=adapter, merge_adapter=False)
    assert hasattr(apart, "peft_config")
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-4)
    assert float((logits(merged) - logits(plain)).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere-at-all", "a/b/c"])
def test_a_missing_folder_is_named(name: str) -> None:
    for load in (load_model, load_tokenizer):
        with pytest.raises(SettingError, match="no such folder"):
            load(name)


def test_an_unreachable_hub_name_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for load in (load_model, load_tokenizer):
        with pytest.raises(SettingError, match=r"someone/some-model: no such folder here, and as a hub name"):
            load("someone/some-model")


def test_folders_that_hold_something_else(folder: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"holds a LoRA adapter: give the base model"):
        load_model(adapter)
    with pytest.raises(SettingError, match=r"no config\.json"):
        load_model(tmp_path)
    with pytest.raises(SettingError, match="is a file; give the folder"):
        load_model(folder / "config.json")
    with pytest.raises(SettingError, match="adapter"):
        load_model(folder, adapter=folder)


def test_missing_weights_are_not_made_up(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(SettingError, match=r"lacks 1 weights.*layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_a_broken_file_and_an_unknown_type(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SettingError, match="cannot be loaded"):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(SettingError, match="lama"):
        load_model(folder)


def test_quantisation_names_what_is_missing(folder: Path) -> None:
    with pytest.raises(SettingError, match="8bit or 4bit"):
        load_model(folder, quantization="2bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(SettingError, match=r"pip install 'amidkd\[quantization\]'"):
            load_model(folder, quantization="4bit")
    elif not torch.cuda.is_available():
        with pytest.raises(SettingError, match="needs a CUDA device"):
            load_model(folder, quantization="4bit")


def test_peft_is_asked_for_only_where_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    load_model(folder)
    with pytest.raises(SettingError, match=r"pip install 'amidkd\[lora\]'"):
        load_model(folder, adapter=folder)


def test_special_ids(shared: Path) -> None:
    gpt2 = load_tokenizer(shared / "tokenizers" / "gpt2-base")
    pronunciation = load_tokenizer(shared / "models" / "g2p-teacher")
    assert gpt2.pad_token_id is None
    assert (pad_id_of(gpt2), pad_id_of(pronunciation)) == (50256, 0)
    assert gpt2.pad_token_id is None
    assert eos_ids_of(gpt2) == (50256,)
    model = tiny_model("llama_untied")
    model.generation_config.eos_token_id = [2, 7]
    assert eos_ids_of(pronunciation, model) == (2, 7)
    assert vocabulary_size(gpt2) == 50257


def test_a_tokenizer_without_any_end_is_refused(shared: Path) -> None:
    tokenizer = load_tokenizer(shared / "models" / "g2p-teacher")
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(SettingError, match="neither a pad nor an EOS"):
        pad_id_of(tokenizer)


def test_a_model_without_tokenizer_files(folder: Path) -> None:
    with pytest.raises(SettingError, match="tokenizer"):
        load_tokenizer(folder)


def test_quantised_models_keep_their_adapter_apart(folder: Path, adapter: Path) -> None:
    from amidkd.models.load import _with_adapter

    with pytest.warns(SettingWarning, match="no effect on a quantised model"):
        model = _with_adapter(tiny_model("llama_untied"), adapter, merge=True, quantized=True)
    assert hasattr(model, "peft_config")


def test_real_model_loads(shared: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(shared / "models" / "stories260K-hf", tmp_path / "copy")
    assert sum(p.numel() for p in load_model(copied).parameters()) == 260_032
    assert VOCABULARY < vocabulary_size(load_tokenizer(copied)) == 512
