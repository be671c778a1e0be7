"""The ``objective`` section: which divergence, between which two distributions, at which α and λ."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from amidkd.config.base import Section

__all__ = [
    "AdaptiveSchedule",
    "ConstantSchedule",
    "CosineSchedule",
    "DivergenceConfig",
    "LinearSchedule",
    "ObjectiveConfig",
    "PiecewiseSchedule",
    "ScheduleConfig",
    "SumConfig",
    "TermConfig",
    "WeightedTermConfig",
    "WeightingConfig",
    "schedule_values",
]

Between = Literal[
    "teacher||student",
    "student||teacher",
    "teacher||assistant",
    "assistant||teacher",
    "student||assistant",
    "assistant||student",
]

_PARAMETERS = {"amari": ("order",), "alpha_beta": ("a", "b")}


class DivergenceConfig(Section):
    """A divergence of the catalogue with its parameters; a bare name is enough where it has none."""

    name: Literal[
        "kl",
        "reverse_kl",
        "jeffreys",
        "jensen_shannon",
        "total_variation",
        "squared_hellinger",
        "chi_squared",
        "amari",
        "alpha_beta",
    ] = Field("kl", description="Name in the catalogue.")
    order: float | None = Field(None, description="`amari` only: its order o (−1 is kl, 1 is reverse_kl).")
    a: float | None = Field(None, description="`alpha_beta` only: the exponent A.")
    b: float | None = Field(None, description="`alpha_beta` only: the exponent B.")

    @model_validator(mode="after")
    def _parameters_belong_to_the_name(self) -> "DivergenceConfig":
        wanted = _PARAMETERS.get(self.name, ())
        for key in ("order", "a", "b"):
            given = getattr(self, key) is not None
            if given and key not in wanted:
                raise ValueError(f"divergence {self.name!r} has no parameter {key!r}; remove it")
            if key in wanted and not given:
                example = ", ".join(f"{k}: {v}" for k, v in zip(wanted, (0.2, 0.7), strict=False))
                raise ValueError(f"divergence {self.name!r} needs {key!r}: write {{name: {self.name}, {example}}}")
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that this divergence takes, by name."""
        return {key: getattr(self, key) for key in _PARAMETERS.get(self.name, ())}


class ConstantSchedule(Section):
    """One value throughout."""

    kind: Literal["constant"] = "constant"
    value: float = Field(description="The value.")


class LinearSchedule(Section):
    """From ``start`` to ``end`` in a straight line over the run."""

    kind: Literal["linear"] = "linear"
    start: float = Field(description="Value at the first step.")
    end: float = Field(description="Value at the last step.")


class CosineSchedule(Section):
    """From ``start`` to ``end`` along half a cosine over the run."""

    kind: Literal["cosine"] = "cosine"
    start: float = Field(description="Value at the first step.")
    end: float = Field(description="Value at the last step.")


class PiecewiseSchedule(Section):
    """Straight lines between the given points."""

    kind: Literal["piecewise"] = "piecewise"
    points: list[tuple[float, float]] = Field(
        min_length=1, description="Pairs (progress in [0, 1], value), in increasing order of progress."
    )

    @field_validator("points")
    @classmethod
    def _increasing(cls, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        progress = [x for x, _ in points]
        if any(not 0 <= x <= 1 for x in progress) or any(x >= y for x, y in pairwise(progress)):
            raise ValueError(
                f"progress must increase within [0, 1]; got {progress}. Example: [[0, 1], [0.5, -1], [1, -3]]"
            )
        return points


class AdaptiveSchedule(Section):
    """TAID's rule: progress follows the relative drop of the loss (Shing et al., ICLR 2025, eq. 8)."""

    kind: Literal["adaptive"] = "adaptive"
    start: float = Field(0.4, ge=0, le=1, description="Value at the first step.")
    end: float = Field(1.0, ge=0, le=1, description="Value never exceeded.")
    rate: float = Field(5e-4, gt=0, description="α_T: largest step of the value.")
    smoothing: float = Field(0.99, ge=0, lt=1, description="Decay of the average of the loss's relative drop.")

    @model_validator(mode="after")
    def _rises(self) -> "AdaptiveSchedule":
        if self.end < self.start:
            raise ValueError(f"end ({self.end}) must not be below start ({self.start})")
        return self


def _kind(value: Any) -> str:
    """What a setting that is a number or a schedule holds, so that only that member complains."""
    if isinstance(value, dict):
        return str(value.get("kind"))
    return getattr(value, "kind", "number")


ScheduleConfig = Annotated[
    Annotated[float, Tag("number")]
    | Annotated[ConstantSchedule, Tag("constant")]
    | Annotated[LinearSchedule, Tag("linear")]
    | Annotated[CosineSchedule, Tag("cosine")]
    | Annotated[PiecewiseSchedule, Tag("piecewise")]
    | Annotated[AdaptiveSchedule, Tag("adaptive")],
    Discriminator(_kind),
]


def schedule_values(setting: Any) -> list[float]:
    """Every value at which a setting's schedule bends: its extremes."""
    if isinstance(setting, (int, float)):
        return [float(setting)]
    if isinstance(setting, ConstantSchedule):
        return [setting.value]
    if isinstance(setting, PiecewiseSchedule):
        return [value for _, value in setting.points]
    return [setting.start, setting.end]


class TermConfig(Section):
    """One divergence of the objective: D(a‖b) between two of teacher, assistant and student."""

    divergence: DivergenceConfig = Field(
        default_factory=DivergenceConfig, description="Name of a divergence, or {name, parameters}."
    )
    between: Between = Field("teacher||assistant", description="The ordered pair (a, b) of D(a‖b).")
    alpha: ScheduleConfig = Field(
        -0.5,
        description="α of the assistant: −1 arithmetic, 1 geometric, 3 harmonic mean. Number or schedule.",
    )
    lam: ScheduleConfig = Field(
        0.1, description="λ in [0, 1]: weight of the teacher in the assistant. Number or schedule."
    )
    detach_assistant: bool = Field(False, description="Treat the assistant as a constant (TAID).")

    @field_validator("divergence", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("lam")
    @classmethod
    def _weight(cls, value: Any) -> Any:
        if any(not 0 <= x <= 1 for x in schedule_values(value)):
            raise ValueError(f"lam weights the teacher and must stay within [0, 1]; got {schedule_values(value)}")
        return value

    @model_validator(mode="after")
    def _leaves_a_gradient(self) -> "TermConfig":
        if self.detach_assistant and "student" not in self.between:
            raise ValueError(
                f"detach_assistant with between={self.between!r} leaves no gradient for the student; "
                "set detach_assistant: false or put the student in `between`"
            )
        return self


class SumConfig(TermConfig):
    """A divergence, or with ``terms`` the weighted sum of several."""

    terms: list["WeightedTermConfig"] | None = Field(
        None, description="Several weighted divergences instead of the one above, such as GKD's two."
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> "SumConfig":
        if self.terms is not None:
            if not self.terms:
                raise ValueError("terms is empty; list at least one, or remove it")
            single = set(TermConfig.model_fields) & self.model_fields_set
            if single:
                raise ValueError(
                    f"{', '.join(sorted(single))} beside `terms` would have no effect; put them into the terms"
                )
        return self


class WeightingConfig(Section):
    """How much each token counts. The sum is still divided by the number of tokens, so that a weight of 1 is neutral.

    w = origin · (1 − strength + strength · m), where m ∈ [0, 1] is what ``by`` measures at the token.
    """

    data: float = Field(1.0, ge=0, description="Weight of the data's text.")
    teacher: float = Field(1.0, ge=0, description="Weight of text that the teacher wrote.")
    student: float = Field(1.0, ge=0, description="Weight of text that the student wrote.")
    by: Literal["none", "teacher_entropy", "student_entropy", "disagreement"] = Field(
        "none",
        description="m: 1 − exp(−entropy) of the teacher or the student, or the total variation between the two.",
    )
    favour: Literal["high", "low"] = Field("high", description="`low` takes 1 − m in place of m.")
    strength: float = Field(1.0, ge=0, le=1, description="0: m has no effect; 1: a token with m = 0 does not count.")

    @model_validator(mode="after")
    def _something_counts(self) -> "WeightingConfig":
        if self.data == self.teacher == self.student == 0:
            raise ValueError("data, teacher and student are all 0, so no token counts; set one above 0")
        return self


class ObjectiveConfig(SumConfig):
    """What the student minimises. With ``terms`` it is their weighted sum (GKD needs two)."""

    student_text: SumConfig | None = Field(
        None,
        description="Another objective where the student wrote the text (policies that let it write). Default: the "
        "same; with `policy.kind: contrastive`, skew reverse KL.",
    )
    weighting: WeightingConfig = Field(default_factory=WeightingConfig, description="How much each token counts.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits of both sides; no T² factor.")
    cross_entropy_weight: float = Field(
        0.0, ge=0, description="Weight of cross-entropy on the data's labels, added to the divergence."
    )


class WeightedTermConfig(TermConfig):
    """A term of a sum, with its weight."""

    weight: float = Field(gt=0, description="Weight of this term.")


SumConfig.model_rebuild()
ObjectiveConfig.model_rebuild()
