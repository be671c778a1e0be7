"""vLLM in this process, and weights over NCCL, against stand-ins for the interface: vLLM itself needs a GPU."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_vllm import LLM, Wire, install
from vllm_stand_in import StandIn

from amidkd.config import SamplingConfig
from amidkd.errors import SettingError
from amidkd.generation import GenerationError, Prompts
from amidkd.generation.make import make_generator
from amidkd.generation.vllm_colocated import VllmColocatedGenerator
from amidkd.generation.vllm_server import VllmServerGenerator
from amidkd.models import save_student
from tiny_world import make_model, make_tokenizer

VOCABULARY, HEAD = 17, 20
TOKENS = [[1, 5, 9], [1, 6], [12]]
PROMPTS = Prompts(tokens=TOKENS, limits=[12, 9, 1], streams=[0, 1, 2], seed=4)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")


def known(folder: Path, model: Any, **changes: Any) -> dict[str, Any]:
    return {
        "model": model, "tokenizer": make_tokenizer(), "eos_ids": (2,), "pad_id": 0, "vocab_size": VOCABULARY,
        "run_folder": folder, "first": True, "rank": 0, "world": 1, **changes,
    }  # fmt: skip


def student(seed: int = 0) -> Any:
    return make_model(width=16, layers=2, seed=seed, padded_vocab=HEAD)


def colocated(folder: Path, model: Any, temperature: float = 0, **changes: Any) -> VllmColocatedGenerator:
    engine = {"kind": "vllm", "mode": "colocated", "memory_fraction": 0.4}
    return VllmColocatedGenerator(
        SamplingConfig(temperature=temperature, engine=engine), **known(folder, model, **changes)
    )


def in_process(model: Any, folder: Path) -> list[list[int]]:
    return make_generator(SamplingConfig(temperature=0), **known(folder, model))(PROMPTS)


def change(model: Any) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)


def test_greedy_answers_are_the_models_before_and_after_new_weights(monkeypatch, tmp_path) -> None:
    install(monkeypatch)
    model = student()
    generator = colocated(tmp_path, model)
    (engine,) = LLM.made
    assert engine.asleep
    assert engine.arguments == {
        "model": str(tmp_path / "colocated_model"), "dtype": "float32", "tensor_parallel_size": 1,
        "gpu_memory_utilization": 0.4, "max_model_len": None, "enable_sleep_mode": True, "generation_config": "vllm",
        "seed": 0,
        "distributed_executor_backend": None,
    }  # fmt: skip
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    told: list[tuple[int, int]] = []
    before = generator(PROMPTS, lambda *made: told.append(made))
    assert before == in_process(model, tmp_path)
    assert told == [(3, sum(map(len, before)))]
    change(model)
    generator.update_weights(1)
    after = generator(PROMPTS)
    assert after == in_process(model, tmp_path) != before
    change(model)
    generator.update_weights(1)
    assert generator(PROMPTS) == after
    assert engine.asleep
    generator.close()
    assert not (tmp_path / "colocated_model").exists()


def test_adapters_are_merged(monkeypatch, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    install(monkeypatch)
    model = peft.get_peft_model(student(), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    generator = colocated(tmp_path, model)
    plain = generator(PROMPTS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0, generator=torch.Generator().manual_seed(1))
    generator.update_weights(1)
    assert generator(PROMPTS) == in_process(model, tmp_path) != plain


def test_each_answer_has_its_own_seed_and_limit(monkeypatch, tmp_path) -> None:
    install(monkeypatch)
    generator = colocated(tmp_path, student(), temperature=1.5, eos_ids=())
    made = generator(PROMPTS)
    assert [len(one) for one in made] == PROMPTS.limits
    settings = LLM.made[0].settings
    assert len({one.seed for one in settings}) == 3
    assert all(one.logit_bias == dict.fromkeys(range(VOCABULARY, HEAD), -100.0) for one in settings)
    assert not any(one.detokenize for one in settings)
    assert generator(Prompts(TOKENS[::-1], PROMPTS.limits[::-1], [2, 1, 0], 4)) == made[::-1]


def test_each_process_has_an_engine_of_its_own(monkeypatch, tmp_path) -> None:
    install(monkeypatch)
    calls: list[str | None] = []
    colocated(tmp_path, student(), world=2, agree=calls.append)
    colocated(tmp_path, student(seed=1), first=False, rank=1, world=2, agree=calls.append)
    assert [one.arguments["distributed_executor_backend"] for one in LLM.made] == ["external_launcher"] * 2
    assert [one.arguments["seed"] for one in LLM.made] == [0, 1]
    assert calls == [None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs: outputs[1:], "2 answers to 3 prompts"),
        (lambda outputs: outputs[::-1], "read the prompt as"),
        (lambda outputs: [SimpleNamespace(**{**vars(outputs[0]), "outputs": []}), *outputs[1:]], "0 answers came"),
    ],
)
def test_an_odd_answer_is_an_error(monkeypatch, tmp_path, change, message) -> None:
    install(monkeypatch)
    generator = colocated(tmp_path, student())
    LLM.made[0].edit = change
    with pytest.raises(GenerationError, match=message):
        generator(PROMPTS)
    assert LLM.made[0].asleep


def test_what_is_missing_is_said(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"amidkd\[vllm\]"):
        colocated(tmp_path, student())
    monkeypatch.undo()
    install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="needs a CUDA device"):
        colocated(tmp_path, student())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    LLM.refuse = "no memory for the cache"
    with pytest.raises(SettingError, match=r"no memory for the cache \(engine.memory_fraction is 0.4, engine.context"):
        colocated(tmp_path, student())


class OnGpu(torch.nn.Module):
    """A model that says that it is on a GPU."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def parameters(self, recurse: bool = True) -> Iterator[Any]:
        return iter([SimpleNamespace(device=torch.device("cuda", 0))])

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner.state_dict(*args, **kwargs)


def test_weights_over_nccl_are_announced_in_the_order_they_come(monkeypatch, tmp_path) -> None:
    """All but the wire is real: the requests, their order, the names; the wire is a queue between two threads."""
    save_student(student(), make_tokenizer(), tmp_path / "served")
    wire = Wire()
    install(monkeypatch, wire)
    server = StandIn(tmp_path / "served", wire=wire)
    model = student()
    engine = {"kind": "vllm", "url": server.url, "weight_push": "nccl", "retries": 1}
    generator = VllmServerGenerator(
        SamplingConfig(temperature=0, max_new_tokens=12, engine=engine),
        **known(tmp_path, OnGpu(model)),
        pause=lambda _: None,
    )
    try:
        change(model)
        for version in (1, 2):
            generator.update_weights(version)
            assert generator(PROMPTS) == in_process(model, tmp_path)
            change(model)
        assert [server.calls[f"/{name}"] for name in ("init_weight_transfer_engine", "finish_weight_update")] == [1, 2]
        server.frames = False
        generator.update_weights(3)
        assert generator(PROMPTS) == in_process(model, tmp_path)
        server.faults = ["close"]
        with pytest.raises(GenerationError, match="may have lost the student's weights"):
            generator(PROMPTS)
    finally:
        generator.close()
        server.stop()
