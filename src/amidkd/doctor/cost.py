"""Time and memory of a run, estimated from a few real steps, and held against what the run used."""

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from amidkd.config import RunConfig, SamplingConfig, StudentSampling
from amidkd.data import Example, Row, Sequences, collate
from amidkd.generation import Prompts
from amidkd.generation.transformers import TransformersGenerator
from amidkd.models import Backbone, eos_ids_of, pad_id_of
from amidkd.record import RunFolder, write_json

__all__ = [
    "Cost",
    "StepTimer",
    "WritingCost",
    "answering_seconds",
    "compare_with_estimate",
    "optimizer_steps",
    "writing_cost",
]

_MEASURED_STEPS = 3
_SAMPLED_PROMPTS = 256
ESTIMATE_FILE = "doctor.json"


@dataclass(frozen=True)
class Cost:
    """What a run is expected to take on this machine.

    Args:
        seconds: Answers, warm start and distillation together.
        peak_memory_mb: Largest memory of the process (of the device, on CUDA), MiB.
        steps: Optimizer steps of the main stage.
    """

    seconds: float
    peak_memory_mb: float
    steps: int

    def save(self, folder: RunFolder) -> None:
        """Leave the estimate in the run folder, for the run to be held against."""
        write_json(folder.path / ESTIMATE_FILE, asdict(self))


def optimizer_steps(config: RunConfig, examples: int, *, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a stage over some examples on this one process."""
    if max_steps is not None and max_steps > 0:
        return max_steps
    training = config.training
    batches = math.ceil(examples / training.per_device_train_batch_size)
    return max(1, math.ceil(epochs * math.ceil(batches / training.gradient_accumulation_steps)))


class StepTimer:
    """Runs real optimizer steps of a student that is thrown away afterwards.

    Args:
        student: The model; its weights change.
        loss: From the student's signal and a batch to the mean loss of the batch.
        batches: Batches to step through, of the run's own size.
        accumulation: Batches in a step.
        pad_id: Id that fills short rows.
    """

    def __init__(self, student: Any, loss: Any, batches: Sequence[Sequence[Example]], accumulation: int, pad_id: int):
        self._backbone = Backbone(student)
        self._loss, self._batches, self._accumulation, self._pad_id = loss, batches, accumulation, pad_id
        self._optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-6)

    def seconds_a_step(self) -> float:
        """Median over a few steps, after one that warms up."""
        times = []
        for step in range(_MEASURED_STEPS + 1):
            start = time.perf_counter()
            for part in range(self._accumulation):
                batch = self._batches[(step * self._accumulation + part) % len(self._batches)]
                self._backward(collate(batch, pad_id=self._pad_id))
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=False)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[_MEASURED_STEPS // 2]

    def _backward(self, sequences: Sequences) -> None:
        sequences = sequences.to(next(self._backbone.model.parameters()).device)
        signal = self._backbone(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT())
        loss: Tensor = self._loss(signal, sequences)
        loss.backward()


def answering_seconds(config: RunConfig, teacher: Any, encoder: Any, prompts: Sequence[Row]) -> float:
    """How long the teacher's answers will take, from a sample of the prompts."""
    settings = config.data.generation
    tokens = [encoder.prompt_tokens(row) for row in prompts[: min(_SAMPLED_PROMPTS, settings.batch_size)]]
    tokens = [prompt for prompt in tokens if prompt is not None]
    if not tokens:
        return 0.0
    start = time.perf_counter()
    limits = [settings.max_new_tokens] * len(tokens)
    _written(settings, teacher.model, teacher.tokenizer, tokens, limits, vocab_size=teacher.vocab_size)
    return (time.perf_counter() - start) * len(prompts) * settings.samples_per_prompt / len(tokens)


@dataclass(frozen=True)
class WritingCost:
    """What it took to write a step's text."""

    seconds: float
    answers: int
    tokens: int


def writing_cost(
    config: RunConfig, settings: StudentSampling, student: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]
) -> WritingCost:
    """Have a student write the text of one optimizer step of this process.

    Args:
        config: The run.
        settings: How the student writes.
        student: The model as it is now.
        tokenizer: Its tokenizer.
        prompts: Ids of the prompts, at least one.
    """
    training = config.training
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps
    asked = [prompts[place % len(prompts)] for place in range(size)]
    start = time.perf_counter()
    limits = [min(settings.max_new_tokens, config.data.max_length - len(prompt)) for prompt in asked]
    answers = _written(settings, student, tokenizer, asked, limits, vocab_size=None)
    return WritingCost(time.perf_counter() - start, len(answers), sum(map(len, answers)))


def _written(
    settings: SamplingConfig,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    vocab_size: int | None,
) -> list[list[int]]:
    """What a model in this process writes, whatever engine the run asks for: a server is not disturbed."""
    generator = TransformersGenerator(
        settings,
        model=model,
        eos_ids=eos_ids_of(tokenizer, model),
        pad_id=pad_id_of(tokenizer),
        vocab_size=vocab_size,
    )
    return generator(Prompts(tokens=prompts, limits=limits, streams=range(len(prompts)), seed=settings.seed))


def peak_memory_mb() -> float:
    """Largest memory so far: of the CUDA device where there is one, else of the process, MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def compare_with_estimate(folder: RunFolder) -> str | None:
    """Hold a run against the doctor's estimate, in its record and in a sentence; None where they do not fit."""
    path = folder.path / ESTIMATE_FILE
    stages = folder.record().get("stages", {})
    if not path.is_file() or not stages:
        return None
    estimate = json.loads(path.read_text(encoding="utf-8"))
    if estimate["steps"] not in (stages.get(verb, {}).get("steps") for verb in ("distill", "sft")):
        # The doctor saw other settings.
        return None
    seconds = sum(stage.get("seconds") or 0.0 for stage in stages.values())
    memory = max((stage.get("peak_memory_mb") or 0.0 for stage in stages.values()), default=0.0)
    folder.update_record(estimate={**estimate, "used_seconds": seconds, "used_peak_memory_mb": memory})
    return (
        f"The doctor estimated {estimate['seconds']:,.0f} s and {estimate['peak_memory_mb']:,.0f} MiB; "
        f"the run used {seconds:,.0f} s and {memory:,.0f} MiB."
    )
