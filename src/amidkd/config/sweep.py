"""The run file's ``sweep``: which settings are tried, how they are chosen, and when it is enough."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from amidkd.config.base import Section, path_field

__all__ = [
    "READY_SPACES",
    "Choices",
    "Distribution",
    "PrunerConfig",
    "Range",
    "RayConfig",
    "SamplerConfig",
    "SweepConfig",
]

Scalar = bool | int | float | str | None


class Range(Section):
    """Numbers from ``low`` to ``high``, both included; whole numbers where both ends and the step are."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    step: int | float | None = Field(None, gt=0, description="Distance of neighbouring values; `grid` needs it.")
    log: bool = Field(False, description="Choose on a logarithmic scale.")
    when: dict[str, Any] | None = Field(
        None, description="Only where other keys of the space have these values; a list means any of them."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"an empty range: low must be below high; got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0; got {self.low}")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other; give the values as choices instead")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(f"step {self.step} is wider than the range")
        return self


class Choices(Section):
    """One of some values."""

    choices: list[Any] = Field(min_length=1, description="The values: numbers, words, or whole sections.")
    when: dict[str, Any] | None = Field(
        None, description="Only where other keys of the space have these values; a list means any of them."
    )

    @model_validator(mode="after")
    def _different(self) -> "Choices":
        # 1 and 1.0 are one value to a storage.
        twice = [repr(choice) for place, choice in enumerate(self.choices) if choice in self.choices[:place]]
        if twice:
            raise ValueError(f"choices given twice: {', '.join(dict.fromkeys(twice))}")
        return self


def _form(value: Any) -> str:
    if isinstance(value, Range) or (isinstance(value, dict) and ("low" in value or "high" in value)):
        return "range"
    return "choices"


Distribution = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_form)]

_ALPHA = [-5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0]
_LAMBDA = [0.05, 0.1, 0.2, 0.3, 0.5]
READY_SPACES: dict[str, dict[str, Any]] = {
    "alpha": {"objective.alpha": {"choices": _ALPHA}},
    "alpha×lambda": {"objective.alpha": {"choices": _ALPHA}, "objective.lam": {"choices": _LAMBDA}},
    "divergence×between×alpha": {
        "objective.divergence": {
            "choices": ["kl", "jeffreys", "squared_hellinger", {"name": "alpha_beta", "a": 0.2, "b": 0.7}]
        },
        "objective.between": {"choices": ["teacher||assistant", "student||assistant", "teacher||student"]},
        "objective.alpha": {
            "choices": _ALPHA,
            "when": {"objective.between": ["teacher||assistant", "student||assistant"]},
        },
    },
}
"""Spaces that can be named instead of written out."""


class SamplerConfig(Section):
    """How the next trial is chosen."""

    kind: Literal["tpe", "grid", "qmc", "random"] = Field(
        "tpe",
        description="`tpe` learns from the trials so far; `grid` tries every combination; `qmc` (Sobol) and `random` "
        "spread them evenly.",
    )
    seed: int = Field(0, ge=0, description="Seed of the choice.")
    startup_trials: int = Field(10, ge=0, description="`tpe`: trials at random before it learns.")


class PrunerConfig(Section):
    """When a trial that falls behind is given up, by the validation loss during training."""

    kind: Literal["none", "median", "successive_halving"] = Field(
        "none",
        description="`median`: worse than the median of earlier trials at the same step; `successive_halving`: the "
        "best 1/reduction_factor go on at each rung.",
    )
    every: int = Field(50, gt=0, description="Steps between two validations.")
    warmup_steps: int = Field(0, ge=0, description="Steps before which no trial is given up.")
    startup_trials: int = Field(4, ge=0, description="`median`: trials that run to the end first.")
    reduction_factor: int = Field(3, gt=1, description="`successive_halving`: one in so many goes on.")
    rows: int | None = Field(256, gt=0, description="Validation rows that are measured; null for all.")


class RayConfig(Section):
    """Run the trials on a Ray cluster (extra ``ray``)."""

    address: str | None = Field(None, description="Address of the cluster; `auto` finds one. Default: a local one.")
    cpus: float = Field(1.0, gt=0, description="CPU cores of a trial.")
    gpus: float = Field(0.0, ge=0, description="GPUs of a trial.")


class SweepConfig(Section):
    """Try settings of the run file and compare what comes out. ``output.folder`` is the sweep's folder."""

    space: dict[str, Distribution] = Field(
        description="`section.key: {low, high}`, or a list of choices; or the name of a ready space: "
        "`alpha`, `alpha×lambda` (also alpha*lambda), `divergence×between×alpha`."
    )
    objective: list[str] = Field(
        ["nll"],
        min_length=1,
        description="Metrics of the evaluation; several give a Pareto front. `-name` turns better around.",
    )
    sampler: SamplerConfig = Field(
        default_factory=SamplerConfig, description="How trials are chosen; a kind is enough."
    )
    pruner: PrunerConfig = Field(default_factory=PrunerConfig, description="When one is given up; a kind is enough.")
    seeds: list[int] = Field([42], min_length=1, description="training.seed of a trial's runs, one run each.")
    trials: int | None = Field(None, gt=0, description="Stop after so many trials. `grid` needs no limit.")
    hours: float | None = Field(None, gt=0, description="Start no trial after so many hours, all sessions together.")
    tokens: int | None = Field(None, gt=0, description="Start no trial after so many supervised tokens in all.")
    workers: int = Field(1, gt=0, description="Trials at a time on this machine, a process each.")
    storage: str | None = path_field(
        None,
        description="A file, or a database address such as `postgresql://…` that several machines share. Default: "
        "`sweep.journal` in the sweep's folder.",
    )
    name: str | None = Field(None, description="Name of the study in the storage. Default: the folder's name.")
    keep_students: Literal["best", "all", "none"] = Field("best", description="Whose students stay on disk.")
    same_failures: int = Field(5, gt=0, description="Stop when the same failure came so many times.")
    ray: RayConfig | None = Field(None, description="Run the trials with Ray Tune; `{}` for a local one.")

    @field_validator("sampler", "pruner", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("objective", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("space", mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            found = READY_SPACES.get(_ready_name(value))
            if found is None:
                raise ValueError(f"no ready space {value!r}; there are {', '.join(READY_SPACES)}")
            return found
        if isinstance(value, dict):
            if not value:
                raise ValueError("an empty space: name at least one key to vary, such as objective.alpha")
            return {key: {"choices": entry} if isinstance(entry, list) else entry for key, entry in value.items()}
        return value

    @model_validator(mode="after")
    def _possible(self) -> "SweepConfig":
        twice = sorted({str(seed) for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seeds given twice: {', '.join(twice)}")
        names = [name.removeprefix("-") for name in self.objective]
        if len(set(names)) < len(names):
            raise ValueError(f"objective: a metric given twice in {', '.join(self.objective)}")
        if self.pruner.kind != "none" and len(self.objective) > 1:
            raise ValueError("pruner: several objectives have no order to prune by; use one objective, or pruner: none")
        for key, entry in self.space.items():
            self._check_condition(key, entry)
        if self.sampler.kind == "grid":
            endless = [key for key, entry in self.space.items() if isinstance(entry, Range) and entry.step is None]
            if endless:
                raise ValueError(f"sampler: grid needs choices, or a range with a step, for {', '.join(endless)}")
        elif self.trials is None and self.hours is None and self.tokens is None:
            raise ValueError(f"sampler: {self.sampler.kind} never ends by itself; give trials, hours or tokens")
        return self

    def _check_condition(self, key: str, entry: Range | Choices) -> None:
        for other, wanted in (entry.when or {}).items():
            if other == key or other not in self.space:
                raise ValueError(f"space.{key}.when: {other!r} is no other key of the space")
            found = self.space[other]
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if isinstance(found, Choices):
                    possible = value in found.choices or value in [_name_of(choice) for choice in found.choices]
                else:
                    possible = isinstance(value, int | float) and _is_drawn(found, value)
                if not possible:
                    endless = isinstance(found, Range) and found.step is None
                    hint = " (a range without a step has no single values: use choices, or a step)" if endless else ""
                    raise ValueError(
                        f"space.{key}.when: {other} is never {value!r}, so {key} would never be tried{hint}"
                    )


def _is_drawn(entry: Range, value: float) -> bool:
    """Whether a value is one of so many of a range; of a range without gaps no single one ever comes up."""
    whole = isinstance(entry.low, int) and isinstance(entry.high, int)
    step = entry.step or (1 if whole else None)
    if step is None or not entry.low <= value <= entry.high:
        return False
    places = (value - entry.low) / step
    return abs(places - round(places)) < 1e-9


def _name_of(choice: Any) -> Any:
    """What a condition may call a choice that is a whole section: its kind or name."""
    return choice.get("kind", choice.get("name")) if isinstance(choice, dict) else choice


def _ready_name(text: str) -> str:
    return "×".join(part.strip() for part in text.replace("*", "×").replace(" x ", "×").split("×"))
