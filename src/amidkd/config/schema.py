"""The run file: one section a class, one field an option with its type, domain and meaning.

The reference page ``docs/reference/run-file.md`` is made from this module.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from amidkd.config.base import Section, path_field
from amidkd.config.evaluation import EvaluationConfig
from amidkd.config.objective import ObjectiveConfig, SumConfig
from amidkd.config.policy import DatasetPolicy, GenerationConfig, PolicyConfig
from amidkd.config.serve import ServeConfig
from amidkd.config.sweep import SweepConfig
from amidkd.config.teacher import Dtype, TeacherConfig

__all__ = [
    "CorpusConfig",
    "DataConfig",
    "DepthPrunedStudent",
    "EvaluationConfig",
    "FromScratchStudent",
    "KernelsConfig",
    "LoraConfig",
    "OutputConfig",
    "PretrainedStudent",
    "PreviousStudent",
    "RunConfig",
    "StageConfig",
    "StudentConfig",
    "TrainingConfig",
    "WarmStartConfig",
]


class LoraConfig(Section):
    """Train low-rank adapters instead of all weights (extra ``lora``)."""

    rank: int = Field(16, gt=0, description="Rank of the adapters.")
    alpha: float = Field(32.0, gt=0, description="Scale: adapters are multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the layers that get adapters."
    )
    merge: bool = Field(True, description="Merge the adapters into the saved student.")


class WarmStartConfig(Section):
    """Fine-tuning by cross-entropy before distillation (design, §1: small α cannot start from random weights)."""

    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, gt=0, description="Stop after this many steps, whatever `epochs` says.")
    learning_rate: float | None = Field(None, gt=0, description="Default: twice `training.learning_rate`.")


def _warm_start_form(value: Any) -> str:
    return "settings" if isinstance(value, dict | WarmStartConfig) else "switch"


WarmStart = Annotated[
    Annotated[WarmStartConfig, Tag("settings")] | Annotated[bool | None, Tag("switch")],
    Discriminator(_warm_start_form),
]


class _Student(Section):
    dtype: Dtype = Field("float32", description="Type of the weights while training; `auto` keeps the file's.")
    lora: LoraConfig | None = Field(None, description="Low-rank adapters; all weights are trained without it.")
    warm_start: WarmStart = Field(
        None,
        description="Fine-tuning before distillation: true, false or settings. Default: on for a student from scratch.",
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the weights.")


class PretrainedStudent(_Student):
    """A model folder or hub name."""

    kind: Literal["pretrained"] = "pretrained"
    model: str = path_field(description="Model folder or hub name.")


class FromScratchStudent(_Student):
    """Random weights in a given shape."""

    kind: Literal["from_scratch"] = "from_scratch"
    config: dict[str, Any] = Field(
        description="transformers config fields with `model_type`, such as {model_type: llama, hidden_size: 64}. "
        "Vocabulary size and special ids come from the tokenizer."
    )
    tokenizer: str | None = path_field(None, description="Tokenizer folder or hub name. Default: the teacher's.")


class DepthPrunedStudent(_Student):
    """Evenly spaced layers of the teacher, with its embeddings and head."""

    kind: Literal["depth_pruned"] = "depth_pruned"
    layers: int = Field(gt=0, description="How many of the teacher's layers to keep.")


class PreviousStudent(_Student):
    """The student of the stage before; every stage after the first starts from it."""

    kind: Literal["previous"] = "previous"


StudentConfig = Annotated[PretrainedStudent | FromScratchStudent | DepthPrunedStudent, Field(discriminator="kind")]


class CorpusConfig(Section):
    """Plain text on which the student also learns to predict the next token (MiniLLM's language-model loss)."""

    source: str = path_field(description="JSONL, Parquet, folder or hub name with a `text` column.")
    split: str = Field("train", description="Split, for a hub data set.")
    weight: float = Field(1.0, gt=0, description="Weight of the corpus loss.")
    max_length: int = Field(512, gt=1, description="Tokens of a text window.")
    batch_size: int | None = Field(None, gt=0, description="Windows a step. Default: the training batch size.")


class DataConfig(Section):
    """Which rows to learn from, and how they become tokens."""

    train: str = path_field(description="JSONL, Parquet, folder or hub name.")
    train_split: str = Field("train", description="Split, for a hub data set.")
    validation: str | None = path_field(None, description="Rows to evaluate on, in the same form as `train`.")
    validation_split: str = Field("validation", description="Split, for a hub data set.")
    validation_rows: int | None = Field(
        None,
        gt=0,
        description="Hold out this many rows of `train`, chosen by `label_seed`, where no `validation` is named.",
    )
    prompt_template: str | None = Field(
        None,
        description="Wraps a bare prompt, e.g. `<s>{prompt}<sep>`; or `instruction` for the papers' prompt.",
    )
    completion_template: str | None = Field(None, description="Wraps a bare completion, e.g. ` {completion}`.")
    add_special_tokens: bool | None = Field(
        None,
        description="Let the tokenizer add its special tokens before the prompt. Default: unless a template is given.",
    )
    max_length: int = Field(512, gt=1, description="Longest row in tokens, prompt and completion together.")
    max_prompt_length: int | None = Field(None, gt=0, description="Longest prompt in tokens. Default: max_length − 1.")
    long_prompts: Literal["error", "drop", "keep_end", "keep_start"] = Field(
        "error",
        description="What to do with a prompt over `max_prompt_length`: stop, drop the row, keep its end or its start.",
    )
    label_fraction: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Part of the rows that keep their completion; the rest become prompts only.",
    )
    label_seed: int = Field(0, ge=0, description="Seed of the choice which rows keep their completion.")
    unlabelled: Literal["teacher_answers", "drop"] = Field(
        "teacher_answers",
        description="Rows without a completion: the teacher answers them once, or they are dropped.",
    )
    generation: GenerationConfig = Field(default_factory=GenerationConfig, description="How the teacher answers them.")
    max_rows: int | None = Field(None, gt=0, description="Use only the first rows of `train`.")
    corpus: CorpusConfig | None = Field(None, description="Plain text for a next-token loss beside distillation.")

    @model_validator(mode="after")
    def _one_source_of_validation(self) -> "DataConfig":
        if self.validation is not None and self.validation_rows is not None:
            raise ValueError("validation_rows has no effect beside `validation`; remove one of them")
        return self


class TrainingConfig(Section):
    """Optimisation. Any field of ``transformers.TrainingArguments`` may be given beside these."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, validate_default=True)

    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the training rows.")
    max_steps: int = Field(-1, description="Optimizer steps; −1 leaves it to the epochs.")
    per_device_train_batch_size: int = Field(8, gt=0, description="Rows in a forward pass on each device.")
    gradient_accumulation_steps: int = Field(1, gt=0, description="Forward passes in an optimizer step.")
    lr_scheduler_type: str = Field("cosine", description="Schedule of the learning rate.")
    warmup_steps: float = Field(0.03, ge=0, description="Steps of warm-up; below 1, a fraction of all steps.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient norm above which gradients are scaled down.")
    logging_steps: int = Field(10, gt=0, description="Steps between two lines of metrics.jsonl.")
    save_steps: int = Field(500, gt=0, description="Steps between two checkpoints.")
    save_total_limit: int | None = Field(2, gt=0, description="Checkpoints kept.")
    seed: int = Field(42, ge=0, description="Seed of weights, order and dropout.")
    bf16: bool = Field(False, description="Run the models under bfloat16 autocast.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    report_to: str | list[str] = Field("none", description="Trackers, such as `tensorboard` or `wandb`.")
    resume_from_checkpoint: bool | str = path_field(
        False, description="true: go on from the run folder's last checkpoint, where there is one."
    )


class KernelsConfig(Section):
    """How the loss is computed."""

    backend: Literal["auto", "naive", "chunked", "fused"] = Field(
        "auto",
        description="`fused`: C++ on the CPU, Triton on a GPU; `chunked`: torch alone; `auto`: `fused` where it can "
        "compute the loss, else `chunked`. `naive` builds full logits: the oracle.",
    )
    memory_mb: float | None = Field(
        None,
        gt=0,
        description="MiB for the loss's temporaries, beside inputs and gradients; more can be faster. Default: 128 on "
        "the CPU, 1024 on a GPU.",
    )


class OutputConfig(Section):
    """Where the run goes."""

    folder: str = Field(description="Run folder, made if absent.")


class StageConfig(Section):
    """A stage: any sections of a run file in part; what is not given is the run file's.

    A section whose `kind` changes is replaced, others are merged key by key. Paths and folders are as in the run file.
    """

    name: str = Field(
        description="Name of its folder, in `stages` of the run folder; left out, it is its number from 1."
    )
    verb: Literal["distill", "sft"] = Field("distill", description="What the stage does.")
    student: Annotated[
        PretrainedStudent | FromScratchStudent | DepthPrunedStudent | PreviousStudent, Field(discriminator="kind")
    ] = Field(description="The first stage's model; of a later one its adapters, type and warm start alone.")
    teacher: TeacherConfig | None = Field(None, description="As in a run file.")
    data: DataConfig = Field(description="As in a run file.")
    objective: ObjectiveConfig = Field(description="As in a run file.")
    policy: PolicyConfig = Field(description="As in a run file.")
    training: TrainingConfig = Field(description="As in a run file.")
    evaluation: EvaluationConfig = Field(description="As in a run file.")
    kernels: KernelsConfig = Field(description="As in a run file.")


_SKEW = {"divergence": "kl", "alpha": -1.0}


def _is_contrastive(policy: Any) -> bool:
    kind = policy.get("kind") if isinstance(policy, dict) else policy
    return kind == "contrastive"


class RunConfig(Section):
    """A run file."""

    student: StudentConfig = Field(description="The model to train.")
    teacher: TeacherConfig | None = Field(
        None, description="What to learn from; `sft` needs none. Without `kind` it is a model in memory (`live`)."
    )
    data: DataConfig = Field(description="The rows to learn from.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What the student minimises.")
    policy: PolicyConfig = Field(default_factory=DatasetPolicy, description="Whose sequences are learnt from.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="Optimisation.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Evaluation.")
    kernels: KernelsConfig = Field(default_factory=KernelsConfig, description="Loss kernels.")
    sweep: SweepConfig | None = Field(None, description="What `amidkd sweep` varies.")
    serve: ServeConfig = Field(default_factory=ServeConfig, description="How `amidkd serve` serves the teacher.")
    output: OutputConfig = Field(description="The run folder; a bare path is enough.")
    stages: list[StageConfig] | None = Field(
        None, description="Partial run files to run one after the other, each starting from the last one's student."
    )

    @model_validator(mode="before")
    @classmethod
    def _objectives_of_the_policy(cls, tree: Any) -> Any:
        """What ``policy.kind: contrastive`` fills in where the run file gives no objective (DistiLLM-2, skew 0.1)."""
        if not isinstance(tree, dict) or not _is_contrastive(tree.get("policy")):
            return tree
        given = tree.get("objective") or {}
        if not isinstance(given, dict):
            return tree
        own = {} if set(SumConfig.model_fields) & set(given) else {"between": "teacher||assistant", **_SKEW, "lam": 0.1}
        reverse = {"between": "student||assistant", **_SKEW, "lam": 0.9}
        return {**tree, "objective": {**own, "student_text": reverse, **given}}

    @field_validator("output", mode="before")
    @classmethod
    def _folder_alone(cls, value: Any) -> Any:
        return {"folder": value} if isinstance(value, str) else value

    @field_validator("student", mode="before")
    @classmethod
    def _model_alone(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": "pretrained", "model": value}
        if isinstance(value, dict) and "kind" not in value and "model" in value:
            return {"kind": "pretrained", **value}
        return value

    @field_validator("teacher", mode="before")
    @classmethod
    def _teacher_alone(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value

    @field_validator("policy", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _parts_that_need_a_teacher(self) -> "RunConfig":
        if self.teacher is None:
            if self.student.kind == "depth_pruned":
                raise ValueError("student.kind: depth_pruned takes its layers from a teacher; add a teacher section")
            if self.student.kind == "from_scratch" and self.student.tokenizer is None:
                raise ValueError("student.tokenizer is needed where there is no teacher to take it from")
        return self
