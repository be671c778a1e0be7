"""The ``policy`` section: which sequences are learnt from, who writes them, and how they are written."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from amidkd.config.base import Section, path_field
from amidkd.config.objective import ScheduleConfig, schedule_values

__all__ = [
    "AdaptivePolicy",
    "ContrastivePolicy",
    "DatasetPolicy",
    "EngineConfig",
    "GenerationConfig",
    "MixedPolicy",
    "OnPolicy",
    "PolicyConfig",
    "SamplingConfig",
    "SequenceLevelPolicy",
    "StudentSampling",
    "TransformersEngine",
    "VllmEngine",
    "WarmupPolicy",
]


class TransformersEngine(Section):
    """The model itself writes, in this process."""

    kind: Literal["transformers"] = "transformers"
    continuous_batching: bool = Field(
        False,
        description="Let transformers' continuous batching write (paged attention): for GPUs; on a CPU it is slower.",
    )


class VllmEngine(Section):
    """vLLM writes: a server over HTTP, or inside this process (extra ``vllm``)."""

    kind: Literal["vllm"] = "vllm"
    mode: Literal["server", "colocated"] = Field("server", description="A server, or vLLM in this process.")
    url: str = Field("http://127.0.0.1:8000", description="Address of the server.")
    token_variable: str | None = Field(
        None, description="Name of the environment variable that holds the server's bearer token."
    )
    timeout: float = Field(600.0, gt=0, description="Seconds to wait for one answer of the server.")
    retries: int = Field(5, ge=0, description="Tries after a failed one, with growing pauses between them.")
    weight_push: Literal["none", "disk", "nccl"] = Field(
        "disk",
        description="How the server gets the student's new weights: through a folder that both see, or over NCCL; "
        "`none` for a writer that does not change, such as the teacher.",
    )
    weight_folder: str | None = path_field(
        None, description="The folder of `disk`, as both sides see it. Default: in the run folder."
    )
    memory_fraction: float = Field(0.3, gt=0, lt=1, description="Part of the GPU's memory for `colocated`.")
    context: int | None = Field(
        None, gt=1, description="Longest row, prompt and answer, for `colocated`. Default: the model's whole context."
    )


EngineConfig = Annotated[TransformersEngine | VllmEngine, Field(discriminator="kind")]


class SamplingConfig(Section):
    """How a model writes. Its temperature is not the loss's: that is ``objective.temperature``."""

    max_new_tokens: int = Field(256, gt=0, description="Longest answer, in tokens.")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus of the sampling distribution.")
    top_k: int = Field(0, ge=0, description="Sample among the k likeliest tokens; 0 is all.")
    batch_size: int = Field(32, gt=0, description="Prompts in a batch.")
    seed: int = Field(0, ge=0, description="Seed of the sampling.")
    engine: EngineConfig = Field(default_factory=TransformersEngine, description="What runs the model.")


class GenerationConfig(SamplingConfig):
    """How the teacher answers prompts that have no completion."""

    samples_per_prompt: int = Field(1, gt=0, description="Answers to each prompt.")

    @model_validator(mode="after")
    def _writer_stays_as_it_is(self) -> "GenerationConfig":
        engine = self.engine
        if isinstance(engine, VllmEngine) and engine.mode == "server" and engine.weight_push != "none":
            raise ValueError(
                f"engine.weight_push is {engine.weight_push!r}, but who writes here does not change: start the server "
                "with that model's own weights and set engine.weight_push: none"
            )
        return self


class StudentSampling(SamplingConfig):
    """How the student writes while it is trained."""

    batch_size: int = Field(256, gt=0, description="Prompts in a batch.")


class DatasetPolicy(Section):
    """Learn from the data set's sequences (off-policy)."""

    kind: Literal["dataset"] = "dataset"


class _Writing(Section):
    generation: StudentSampling = Field(default_factory=StudentSampling, description="How the student writes.")


class _OnPolicySteps(_Writing):
    steps_per_generation: int = Field(
        1,
        gt=0,
        description="Write once for this many optimizer steps; the later ones learn from an older student's text.",
    )


class OnPolicy(_OnPolicySteps):
    """Learn from what the student writes to the data's prompts (GKD with λ = 1)."""

    kind: Literal["on_policy"] = "on_policy"


class MixedPolicy(_OnPolicySteps):
    """Learn from the student's text in a part of the steps, from the data's in the others (GKD)."""

    kind: Literal["mixed"] = "mixed"
    on_policy_fraction: float = Field(0.5, ge=0, le=1, description="Part of the optimizer steps that are on-policy.")


class AdaptivePolicy(_Writing):
    """DistiLLM's schedule: more of the student's text when the validation loss rises; old text is used again."""

    kind: Literal["adaptive"] = "adaptive"
    initial_threshold: float = Field(
        0.0, ge=0, le=1, description="φ at the start: the probability that a step learns from the student's text."
    )
    tolerance: float = Field(0.1, ge=0, description="φ rises by 0.1 when the validation loss rises by more than this.")
    replay_ratio: Literal["constant", "increasing", "decreasing"] = Field(
        "increasing",
        description="How often such a step draws old text from the replay buffer instead of writing anew: half of "
        "the time, or a part that rises from 0 to 1 or falls from 1 to 0 over training.",
    )
    capacity: int = Field(1000, gt=0, description="Sequences in the replay buffer, over all processes.")
    validation_steps: int | None = Field(
        None, gt=0, description="Optimizer steps between two validation losses. Default: an epoch."
    )
    validation_rows: int = Field(256, gt=0, description="Rows that the validation loss is measured on, at most.")


class SequenceLevelPolicy(Section):
    """Learn from text that a model has written to all prompts beforehand (SeqKD; ImitKD where the student wrote it)."""

    kind: Literal["sequence_level"] = "sequence_level"
    writer: Literal["teacher", "student"] = Field("teacher", description="Who writes.")
    folder: str | None = path_field(
        None,
        description="Folder that `amidkd generate` made. Default: `generated` in the run folder, written first where "
        "it is not there.",
    )


class ContrastivePolicy(_Writing):
    """DistiLLM-2: the teacher's and the student's answer to each prompt, with an objective for each.

    Where the run file gives none, they are skew forward KL on the teacher's text and skew reverse KL on the student's
    (``objective`` and ``objective.student_text``).
    """

    kind: Literal["contrastive"] = "contrastive"
    beta: ScheduleConfig = Field(
        1.0, description="β in [0, 2]: weight of the student's text; the teacher's has 2 − β. Number or schedule."
    )
    adaptive_skew: bool = Field(
        False,
        description="Choose the skew of every sequence by how far teacher and student are apart on it; λ of the "
        "objectives is then the skew at the average distance. Needs assistants with α = −1.",
    )
    teacher_text: Literal["answers", "data"] = Field(
        "answers", description="The teacher's side: its own answer to each prompt, or the data's completion if any."
    )
    refresh: Literal["epoch", "step"] = Field(
        "epoch", description="When the student writes anew: at the start of each epoch, or in each step."
    )

    @model_validator(mode="after")
    def _weights(self) -> "ContrastivePolicy":
        if any(not 0 <= value <= 2 for value in schedule_values(self.beta)):
            raise ValueError(f"beta must stay within [0, 2]; got {schedule_values(self.beta)}")
        return self


class WarmupPolicy(_Writing):
    """Warmup-Distill: the student writes, the teacher rewrites from the first token that it finds unlikely.

    The student is trained on the corrected text: by cross-entropy, or by preference over its own (DPO).
    """

    kind: Literal["warmup"] = "warmup"
    reject_threshold: float = Field(
        0.05, gt=0, lt=1, description="A token to which the teacher gives less than this is rejected."
    )
    rounds: int = Field(
        4,
        gt=0,
        description="How often the teacher may correct a text: it writes one token in place of the next such one and "
        "the student goes on; the last time the teacher writes to the end.",
    )
    loss: Literal["cross_entropy", "dpo"] = Field(
        "cross_entropy", description="What the student minimises; `dpo` needs the extra `dpo`."
    )
    dpo_beta: float = Field(0.1, gt=0, description="β of DPO.")


PolicyConfig = Annotated[
    DatasetPolicy | OnPolicy | MixedPolicy | AdaptivePolicy | SequenceLevelPolicy | ContrastivePolicy | WarmupPolicy,
    Field(discriminator="kind"),
]
