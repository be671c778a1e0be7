"""Text from vLLM inside this process, on the GPU that also trains."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import torch

from amidkd.config import SamplingConfig
from amidkd.config.policy import VllmEngine
from amidkd.errors import SettingError
from amidkd.generation.base import GenerationError, Prompts
from amidkd.generation.ranks import agree_on
from amidkd.generation.vllm_common import Answer, VllmSampling, request_seed
from amidkd.models import checkpoint_weights, save_student

__all__ = ["VllmColocatedGenerator"]


@final
class VllmColocatedGenerator:
    """Writes with vLLM beside the model, one engine on each process's GPU, asleep between uses.

    Note: not run with vLLM itself so far, since neither GPU nor vLLM was at hand; its calls are tested against a
    stand-in with vLLM's signatures.

    Args:
        config: How the model is sampled, and vLLM's part of the GPU (``engine.memory_fraction``).
        model: The causal model, on a CUDA device, not wrapped for distribution.
        tokenizer: The model's.
        eos_ids: Ids that end an answer; no other does.
        pad_id: Not used: requests are not padded.
        vocab_size: Ids from here on never come; None: the model's head decides.
        run_folder: Where the model's configuration and first weights are kept for vLLM.
        first: Whether this process writes that folder.
        rank: Number of this process.
        world: Number of processes.
        agree: Shares a message, or None, with all processes and gives the first message; waits for all.

    Raises:
        SettingError: vLLM or CUDA is missing, or vLLM cannot start with the model.
    """

    def __init__(
        self,
        config: SamplingConfig,
        *,
        model: Any,
        tokenizer: Any,
        eos_ids: Sequence[int],
        pad_id: int,
        vocab_size: int | None,
        run_folder: Path,
        first: bool,
        rank: int,
        world: int,
        agree: Callable[[str | None], str | None] | None = None,
    ) -> None:
        if not isinstance(config.engine, VllmEngine):
            raise SettingError(f"engine.kind: {config.engine.kind} is no vLLM; set engine.kind: vllm")
        self._sampling = VllmSampling.of(config, model, eos_ids, vocab_size)
        _require_vllm()
        self._model, self._first, self._folder = model, first, run_folder / "colocated_model"
        agree = agree or agree_on(world)
        if first:
            save_student(model, tokenizer, self._folder)
        agree(None)
        self._llm: Any = _engine(self._folder, model, config.engine, rank=rank, world=world)
        # The server's check of the context has its like here: vLLM may have settled on a shorter one.
        self._room: int | None = getattr(self._llm.llm_engine.model_config, "max_model_len", None)
        self._version: int | None = None
        self._llm.sleep(level=1)

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        """Ids of each answer, in the prompts' order.

        Raises:
            SettingError: A prompt that the model's or vLLM's context has no room for.
            GenerationError: What vLLM gave is not what was asked for.
        """
        from vllm import SamplingParams

        limits = self._sampling.limits(prompts, self._room)
        settings = [
            SamplingParams(**self._sampling.arguments(limit, request_seed(prompts.seed, stream)), detokenize=False)
            for limit, stream in zip(limits, prompts.streams, strict=True)
        ]
        self._wake()
        try:
            outputs = self._llm.generate(
                [{"prompt_token_ids": list(tokens)} for tokens in prompts.tokens],
                sampling_params=settings,
                use_tqdm=False,
            )
        finally:
            self._llm.sleep(level=1)
        if len(outputs) != len(limits):
            raise GenerationError(f"vLLM gave {len(outputs)} answers to {len(limits)} prompts")
        answers = [
            self._checked(output, tokens, limit)
            for output, tokens, limit in zip(outputs, prompts.tokens, limits, strict=True)
        ]
        if progress is not None:
            progress(len(answers), sum(map(len, answers)))
        return answers

    def update_weights(self, version: int) -> None:
        """Copy the model's weights into vLLM's; each process does so for its own engine."""
        if version == self._version:
            return
        self._wake()
        try:
            self._llm.apply_model(partial(_load, checkpoint_weights(self._model)))
            if self._llm.reset_prefix_cache() is False:
                raise GenerationError("vLLM could not empty its prefix cache after new weights came")
        finally:
            self._llm.sleep(level=1)
        self._version = version

    def close(self) -> None:
        """Give vLLM's part of the GPU back; remove the folder it started from."""
        self._llm = None
        if self._first:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _wake(self) -> None:
        # Sleep frees the GPU's memory for training; what PyTorch keeps of it in its cache would be missed.
        torch.cuda.empty_cache()
        self._llm.wake_up()

    def _checked(self, output: Any, prompt: Sequence[int], limit: int) -> list[int]:
        where = "vLLM in this process"
        if len(output.outputs) != 1:
            raise GenerationError(f"{where}: {len(output.outputs)} answers came where one was asked for")
        (made,) = output.outputs
        if made.index != 0:
            raise GenerationError(f"{where}: the one answer has index {made.index!r}, not 0")
        answer = Answer(
            ids=list(made.token_ids),
            prompt=output.prompt_token_ids,
            finish_reason=made.finish_reason,
            stop_reason=made.stop_reason,
        )
        return self._sampling.checked(answer, prompt, limit, where)


def _require_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise SettingError("engine.mode: colocated needs vLLM: pip install 'amidkd[vllm]'; or use a server")
    if not torch.cuda.is_available():
        raise SettingError("engine.mode: colocated needs a CUDA device, and there is none; use a server")


def _engine(folder: Path, model: Any, engine: VllmEngine, *, rank: int, world: int) -> Any:
    # The engine must run in this process: it is handed the live weights.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    # Several processes, each with an engine of its own on its own GPU.
    several = {"distributed_executor_backend": "external_launcher"} if world > 1 else {}
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    try:
        return LLM(
            model=str(folder),
            dtype=dtype,
            tensor_parallel_size=1,
            gpu_memory_utilization=engine.memory_fraction,
            max_model_len=engine.context,
            enable_sleep_mode=True,
            generation_config="vllm",
            seed=rank,
            **several,
        )
    except (ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:400]
        raise SettingError(
            f"engine.mode: vLLM cannot start with the model: {cause} (engine.memory_fraction is "
            f"{engine.memory_fraction}, engine.context {engine.context or 'that of the model'})"
        ) from error


def _load(weights: dict[str, torch.Tensor], model: Any) -> None:
    """Runs within vLLM, on its model."""
    model.load_weights(weights.items())
