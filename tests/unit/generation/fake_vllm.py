"""The part of vLLM's Python interface that is called, with its signatures, over a small real model.

An argument that vLLM does not have is a TypeError, a call while the engine sleeps an error.
"""

import queue
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from amidkd.models import generate, load_model

__all__ = ["LLM", "Wire", "install"]


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    detokenize: bool = True
    skip_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None


class LLM:
    """One engine; ``made`` lists all that were built, with their arguments."""

    made: list["LLM"] = []  # noqa: RUF012
    refuse: str | None = None

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        enable_sleep_mode: bool = False,
        generation_config: str = "auto",
        seed: int = 0,
        distributed_executor_backend: str | None = None,
    ) -> None:
        if LLM.refuse is not None:
            raise ValueError(LLM.refuse)
        self.arguments = {key: value for key, value in locals().items() if key != "self"}
        assert Path(model, "tokenizer_config.json").is_file()
        self.model = self.cached = load_model(model, dtype=dtype)
        room = max_model_len or self.model.config.max_position_embeddings
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=room))
        self.asleep = False
        self.edit: Callable[[Any], Any] = lambda outputs: outputs
        self.settings: list[SamplingParams] = []
        LLM.made.append(self)

    def sleep(self, level: int = 1) -> None:
        assert self.arguments["enable_sleep_mode"]
        assert level == 1
        self.asleep = True

    def wake_up(self, tags: list[str] | None = None) -> None:
        assert tags is None
        self.asleep = False

    def apply_model(self, func: Callable[[Any], Any]) -> list[Any]:
        assert not self.asleep
        return [func(SimpleNamespace(load_weights=self._load_weights))]

    def reset_prefix_cache(self) -> bool:
        assert not self.asleep
        self.cached = self.model
        return True

    def generate(
        self, prompts: list[dict[str, Any]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[Any]:
        assert not self.asleep
        assert not use_tqdm
        assert len(prompts) == len(sampling_params)
        self.settings = sampling_params
        pairs = zip(prompts, sampling_params, strict=True)
        return self.edit([self._one(prompt, settings) for prompt, settings in pairs])

    def _one(self, prompt: dict[str, Any], given: SamplingParams) -> Any:
        assert set(prompt) == {"prompt_token_ids"}
        assert given.ignore_eos and given.n == 1 and given.min_p == 0  # noqa: PT018
        head = self.model.config.vocab_size
        stop = given.stop_token_ids or []
        (ids,) = generate(
            self.cached, [prompt["prompt_token_ids"]], eos_ids=stop, pad_id=0, max_new_tokens=given.max_tokens,
            temperature=given.temperature, top_p=given.top_p, top_k=given.top_k, batch_size=1, seed=given.seed or 0,
            vocab_size=head - len(given.logit_bias or {}),
        )  # fmt: skip
        ended = ids[-1] in stop
        made = SimpleNamespace(
            index=0, token_ids=tuple(ids), finish_reason="stop" if ended else "length",
            stop_reason=ids[-1] if ended else None,
        )  # fmt: skip
        return SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[made])

    def _load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """New weights come into a new model: what is cached stays the old one's until it is reset."""
        self.model = load_model(self.arguments["model"], dtype=self.arguments["dtype"])
        given = dict(weights)
        self.model.load_state_dict(given, strict=True)
        return set(given)


@dataclass
class Wire:
    """What goes between two ends of a communicator, in its order."""

    tensors: "queue.Queue[torch.Tensor]" = field(default_factory=queue.Queue)
    joined: "queue.Queue[dict[str, Any]]" = field(default_factory=queue.Queue)


def install(monkeypatch: pytest.MonkeyPatch, wire: Wire | None = None) -> None:
    """Put the modules where ``import vllm`` finds them, and a CUDA device where it is asked for."""
    LLM.made, LLM.refuse = [], None

    class StatelessProcessGroup:
        @staticmethod
        def create(host: str, port: int, rank: int, world_size: int) -> Any:
            assert wire is not None
            group = {"master_address": host, "master_port": port, "rank": rank, "world_size": world_size}
            wire.joined.put(group)
            return group

    class PyNcclCommunicator:
        def __init__(self, group: Any, device: Any) -> None:
            assert set(group) == {"master_address", "master_port", "rank", "world_size"}

        def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
            assert wire is not None
            assert src == 0
            wire.tensors.put(tensor.clone())

    contents: dict[str, dict[str, Any]] = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "vllm.distributed": {},
        "vllm.distributed.device_communicators": {},
        "vllm.distributed.device_communicators.pynccl": {"PyNcclCommunicator": PyNcclCommunicator},
        "vllm.distributed.utils": {"StatelessProcessGroup": StatelessProcessGroup},
        "vllm.utils": {},
        "vllm.utils.network_utils": {"get_ip": lambda: "127.0.0.1"},
    }
    for name, names in contents.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(names, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
