"""The run file's ``teacher``: where its distributions come from, and which of its models can be loaded here."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from amidkd.config.base import Section, path_field

__all__ = [
    "CachedTeacher",
    "Dtype",
    "EnsembleTeacher",
    "LiveTeacher",
    "MemberConfig",
    "ServedTeacher",
    "StageTeacher",
    "TeacherConfig",
    "WeightSearch",
    "live_teacher",
    "members_of",
    "tokenizer_source",
]

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TeacherFormat = Literal["top_k", "hidden"]


class _Model(Section):
    """A model that is loaded from its weights."""

    dtype: Dtype = Field("auto", description="Type of the weights; `auto` keeps the file's.")
    device: str | None = Field(None, description="Device, such as `cuda:1`. Default: the student's.")
    adapter: str | None = path_field(None, description="LoRA adapter folder on top of the model.")
    merge_adapter: bool = Field(True, description="Merge the adapter into the weights at load time.")
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="Load quantised through bitsandbytes (extra `quantization`)."
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the weights.")


class LiveTeacher(_Model):
    """A model in memory, run beside the student."""

    kind: Literal["live"] = "live"
    name: str | None = Field(None, description="What messages, records and a data column call it.")
    model: str = path_field(description="Model folder or hub name.")
    alignment: Literal["token", "text"] = Field(
        "token",
        description="`token`: teacher and student share a tokenizer, which is proved. `text`: they need not; their "
        "tokens are matched by the text that they stand for.",
    )
    uld_weight: float = Field(
        0.1,
        ge=0,
        description="With `alignment: text`, weight of the distance between the tokens that only one tokenizer has, "
        "compared by rank (universal logit distillation).",
    )

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or self.model


class ServedTeacher(Section):
    """A model on another machine, asked over HTTP: `amidkd serve`, or a vLLM server."""

    kind: Literal["served"] = "served"
    name: str | None = Field(None, description="What messages, records and a data column call it.")
    url: str = Field("http://127.0.0.1:8765", description="Address of the server.")
    api: Literal["amidkd", "vllm"] = Field("amidkd", description="What answers there.")
    model: str | None = path_field(
        None,
        description="Folder or hub name of the teacher's tokenizer. Default: `amidkd serve` sends its own; vLLM needs "
        "it named.",
    )
    served_name: str | None = Field(None, description="Name of the model on a vLLM server. Default: its only one.")
    format: TeacherFormat = Field(
        "top_k", description="`top_k`: the likeliest tokens and a tail; `hidden`: exact, `amidkd serve` alone."
    )
    top_k: int = Field(64, gt=0, description="How many of the likeliest tokens `top_k` asks for.")
    batch_rows: int = Field(16, gt=0, description="Rows of a request.")
    connections: int = Field(4, gt=0, description="Requests under way at once.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for an answer.")
    retries: int = Field(6, ge=0, description="How often a request is tried again, with growing pauses.")
    token_variable: str | None = Field(
        None, description="Environment variable that holds the server's bearer token. Default: no token."
    )
    trust_remote_code: bool = Field(False, description="Run tokenizer code that comes with the model.")

    @model_validator(mode="after")
    def _what_vllm_can(self) -> "ServedTeacher":
        if self.api == "vllm" and self.format != "top_k":
            raise ValueError("format: a vLLM server sends log-probabilities alone; use top_k, or `amidkd serve`")
        if self.api == "vllm" and self.model is None:
            raise ValueError("model: name the folder or hub name of the tokenizer of the model that vLLM serves")
        if self.api == "amidkd" and self.served_name is not None:
            raise ValueError("served_name has no effect with `api: amidkd`, which serves one model; remove it")
        return self

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or self.url


class CachedTeacher(_Model):
    """What a teacher said of every training row, read from disk: `amidkd cache` writes it.

    The settings of the model are those of `kind: live`, so that `teacher.kind=cached` turns one into the other. Its
    weights are loaded to write the cache; in training only where they are at hand and something else needs them
    (answers, evaluation).
    """

    kind: Literal["cached"] = "cached"
    name: str | None = Field(None, description="What messages, records and a data column call it.")
    folder: str | None = path_field(None, description="The cache. Default: `teacher-cache` in the run folder.")
    model: str | None = path_field(
        None, description="Model folder or hub name of the teacher. It may be left out where the cache is complete."
    )
    source: ServedTeacher | None = Field(None, description="A server to fill the cache from, in place of `model`.")
    format: TeacherFormat | Literal["samples"] = Field(
        "top_k",
        description="`top_k`: the likeliest tokens and the mass of the rest; `hidden`: last hidden states in bfloat16 "
        "and the head once, exact for any objective and temperature; `samples`: the likeliest tokens and draws from "
        "the rest, an unbiased estimate for forward KL alone.",
    )
    top_k: int = Field(64, gt=0, description="How many of the likeliest tokens `top_k` and `samples` keep.")
    draws: int = Field(32, gt=0, description="How many tokens `samples` draws from those beyond the likeliest.")
    batch_size: int = Field(16, gt=0, description="Rows in a batch while the cache is written.")
    shard_rows: int = Field(1024, gt=0, description="Rows of a file of the cache.")

    @model_validator(mode="after")
    def _one_source(self) -> "CachedTeacher":
        if self.model is not None and self.source is not None:
            raise ValueError("model and source are two ways to fill one cache; give one of them")
        return self

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or self.model or self.folder or "teacher-cache"


class StageTeacher(_Model):
    """The student of an earlier stage: a teacher assistant."""

    kind: Literal["stage"] = "stage"
    name: str | None = Field(None, description="What messages, records and a data column call it.")
    stage: str = Field(description="Name of the earlier stage.")

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or f"the student of stage {self.stage}"


def _kind_of(value: Any) -> str | None:
    if isinstance(value, dict):
        return value.get("kind", "live")
    return getattr(value, "kind", None)


MemberConfig = Annotated[
    Annotated[LiveTeacher, Tag("live")]
    | Annotated[CachedTeacher, Tag("cached")]
    | Annotated[ServedTeacher, Tag("served")]
    | Annotated[StageTeacher, Tag("stage")],
    Discriminator(_kind_of),
]


class WeightSearch(Section):
    """Weights that make the teachers' mixture likeliest on held-out rows (differential evolution; extra `ensemble`)."""

    rows: int = Field(256, gt=0, description="Held-out rows that are looked at, of `data.validation` (or held out).")
    iterations: int = Field(100, gt=0, description="Most generations of the search.")
    seed: int = Field(0, ge=0, description="Seed of the search.")


class EnsembleTeacher(Section):
    """Several teachers at once; the assistant is the flat mixture of all of them and the student."""

    kind: Literal["ensemble"] = "ensemble"
    name: str | None = Field(None, description="What messages and records call it.")
    teachers: list[MemberConfig] = Field(min_length=2, description="The teachers.")
    weights: list[float] | Literal["uniform", "by_row", "search"] = Field(
        "uniform",
        description="What each teacher counts for: numbers (their sum does not matter), `uniform`, `by_row` (each row "
        "names its teacher in its column `teacher_id`, by name or number from 0) or `search`.",
    )
    search: WeightSearch = Field(default_factory=WeightSearch, description="How `weights: search` goes.")
    drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that a teacher is left out of a step, at least one staying (densely guided "
        "distillation).",
    )

    @field_validator("weights")
    @classmethod
    def _proper(cls, value: Any) -> Any:
        if isinstance(value, list) and (min(value, default=-1) < 0 or not sum(value) > 0):
            raise ValueError("must be numbers of at least 0, not all 0")
        return value

    @model_validator(mode="after")
    def _one_weight_each(self) -> "EnsembleTeacher":
        if isinstance(self.weights, list) and len(self.weights) != len(self.teachers):
            raise ValueError(f"weights: {len(self.weights)} numbers for {len(self.teachers)} teachers")
        names = [member.name for member in self.teachers if member.name is not None]
        if len(set(names)) < len(names):
            raise ValueError("two teachers have one name; give each its own")
        if self.weights == "by_row" and self.drop > 0:
            raise ValueError("drop has no meaning with `weights: by_row`, where each row has one teacher; remove it")
        return self

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.name or " + ".join(member.title for member in self.teachers)


TeacherConfig = Annotated[
    Annotated[LiveTeacher, Tag("live")]
    | Annotated[CachedTeacher, Tag("cached")]
    | Annotated[ServedTeacher, Tag("served")]
    | Annotated[StageTeacher, Tag("stage")]
    | Annotated[EnsembleTeacher, Tag("ensemble")],
    Discriminator(_kind_of),
]
AnyTeacher = LiveTeacher | CachedTeacher | ServedTeacher | StageTeacher | EnsembleTeacher


def members_of(teacher: AnyTeacher) -> list[LiveTeacher | CachedTeacher | ServedTeacher | StageTeacher]:
    """The teachers of a section: its own list, or itself alone."""
    return list(teacher.teachers) if isinstance(teacher, EnsembleTeacher) else [teacher]


def live_teacher(teacher: AnyTeacher | None) -> LiveTeacher | None:
    """The model that can be loaded where text is to be written or a student measured against it; None: there is none.

    Of a cache, the model that it was made of, where the section names one; of several teachers, the first that can be
    loaded. A served teacher is elsewhere because it does not fit here, so it is never loaded.
    """
    if teacher is None:
        return None
    for member in members_of(teacher):
        if isinstance(member, LiveTeacher):
            return member
        if isinstance(member, CachedTeacher) and member.model is not None:
            shared = {name: getattr(member, name) for name in _Model.model_fields}
            return LiveTeacher(model=member.model, name=member.name, **shared)
    return None


def tokenizer_source(teacher: AnyTeacher | None) -> str | None:
    """Folder or hub name of a tokenizer that the section names, or None."""
    for member in () if teacher is None else members_of(teacher):
        if isinstance(member, LiveTeacher | CachedTeacher | ServedTeacher) and member.model is not None:
            return member.model
    return None
