"""The space of a sweep: which settings a trial gets, and whether all of it can be run, before anything is."""

import itertools
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from amidkd.config import Choices, Range, RunConfig
from amidkd.config.load import sections_in
from amidkd.errors import SettingError
from amidkd.sweep.trial import trial_config

__all__ = [
    "Space",
    "applies",
    "check_space",
    "combinations",
    "decoded",
    "encoded",
    "in_order",
    "is_finite",
    "values_of",
]

Space = Mapping[str, Range | Choices]
"""By dotted key of the run file."""

_MOST_CHECKED = 256
_SHOWN = 5
_FIXED = {
    "output": "each trial has a folder of its own",
    "sweep": "a sweep does not vary itself",
    "stages": "a key of the run file reaches all of its stages; stages themselves cannot be varied",
    "serve": "trials serve nothing",
    "training.seed": "list the seeds of every trial in sweep.seeds",
    "training.output_dir": "each trial has a folder of its own",
    "training.resume_from_checkpoint": "a trial always goes on where it was cut off",
    "evaluation.after_training": "every trial is evaluated",
}


_TAUGHT = tuple(f"objective.{name}" for name in ("divergence", "between", "alpha", "lam", "terms"))
"""What a teacher is learnt by: without one, trials that differ in it alone would be one trial."""


def in_order(space: Space) -> list[str]:
    """Its keys, each after those that its ``when`` names.

    Args:
        space: What is varied.

    Raises:
        SettingError: Conditions that go in a circle.
    """
    found: list[str] = []
    left = list(space)
    while left:
        ready = [key for key in left if all(other in found for other in space[key].when or {})]
        if not ready:
            raise SettingError(f"sweep.space: the conditions (`when`) of {', '.join(left)} go in a circle")
        found += ready
        left = [key for key in left if key not in ready]
    return found


def applies(entry: Range | Choices, params: Mapping[str, Any]) -> bool:
    """Whether a key is set at all, beside the values that other keys have.

    Args:
        entry: The key's.
        params: Values of the keys before it.
    """
    for other, wanted in (entry.when or {}).items():
        allowed = wanted if isinstance(wanted, list) else [wanted]
        if other not in params:
            return False
        value = params[other]
        named = value.get("kind", value.get("name")) if isinstance(value, dict) else value
        if value not in allowed and named not in allowed:
            return False
    return True


def is_finite(space: Space) -> bool:
    """Whether there are so many combinations and no more."""
    return all(isinstance(entry, Choices) or entry.step is not None for entry in space.values())


def values_of(entry: Range | Choices) -> list[Any]:
    """The values of a key with so many and no more.

    Args:
        entry: Choices, or a range with a step.
    """
    if isinstance(entry, Choices):
        return list(entry.choices)
    assert entry.step is not None
    count = int((entry.high - entry.low) / entry.step + 1e-9)
    # Rounded, so that 0.1 + 2 · 0.1 is the 0.3 that a reader expects.
    return [_rounded(entry.low + place * entry.step) for place in range(count + 1)]


def _rounded(value: float) -> float:
    return round(value, 12) if isinstance(value, float) else value


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of a finite space, each once and as it is asked for: there may be millions.

    A key whose condition fails is not in it.

    Args:
        space: A finite space.
    """
    return _combined(space, {key: values_of(entry) for key, entry in space.items()})


def _combined(space: Space, values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    def extend(keys: Sequence[str], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if not keys:
            yield params
            return
        key, rest = keys[0], keys[1:]
        if not applies(space[key], params):
            yield from extend(rest, params)
            return
        for value in values[key]:
            yield from extend(rest, {**params, key: value})

    return extend(in_order(space), {})


def encoded(value: Any) -> Any:
    """A choice as a storage holds it: a section becomes its JSON text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict | list) else value


def decoded(entry: Range | Choices, stored: Any) -> Any:
    """The value that :func:`encoded` came from.

    Args:
        entry: The key's.
        stored: What the storage holds.
    """
    if isinstance(entry, Range):
        return stored
    return next(choice for choice in entry.choices if encoded(choice) == stored)


def check_space(config: RunConfig, tree: Mapping[str, Any], space: Space) -> None:
    """Make sure that every trial could start: keys exist, nothing is set twice, values go together.

    A finite space of up to 256 combinations is checked whole. Of a larger one every choice and both ends of every
    range are, in combinations drawn at random.

    Args:
        config: The sweep's run file.
        tree: The same as :func:`amidkd.config.dump_yaml` resolves it.
        space: What is varied.

    Raises:
        SettingError: With the first settings that cannot be run, and why.
    """
    lines = [line for key in space for line in _wrong_key(key, tree)]
    if lines:
        raise SettingError("\n".join(["sweep.space cannot be used:", *(f"  {line}" for line in lines)]))
    in_order(space)
    wrong = []
    checked = _to_check(space)
    for params in checked:
        reason = _wrong_combination(config, tree, params)
        if reason is not None:
            wrong.append(f"  {_shown(params)}: {reason}")
    if wrong:
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise SettingError(
            f"sweep.space: {len(wrong)} of {len(checked)} combinations that were checked cannot be run:\n"
            + "\n".join(wrong[:_SHOWN])
            + more
            + "\nChange these values, or say with `when` where a key applies."
        )


def _wrong_key(key: str, tree: Mapping[str, Any]) -> Iterator[str]:
    parts = key.split(".")
    for fixed, why in _FIXED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            yield f"{key}: {why}; take it out of the space"
            return
    models: list[Any] = [RunConfig]
    for place, part in enumerate(parts):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if not fields:
            if place and any(model.model_config.get("extra") == "allow" for model in models):
                break
            known = sorted({name for model in models for name in model.model_fields})
            near = get_close_matches(part, known, n=1, cutoff=0.5)
            where = ".".join(parts[:place]) or "a run file"
            meant = f"did you mean {'.'.join([*parts[:place], near[0]])}?" if near else f"known: {', '.join(known)}"
            yield f"{key}: {where} has no key {part!r}; {meant}"
            return
        models = [model for field in fields for model in sections_in(field.annotation)]
        if not models:
            if place < len(parts) - 1 and not any("dict" in str(field.annotation) for field in fields):
                yield f"{key}: {'.'.join(parts[: place + 1])} is a single value, which has no keys"
                return
            break
    for number, stage in enumerate(tree.get("stages") or [], start=1):
        if _sets(stage, parts):
            yield (
                f"{key}: stage {stage.get('name', number)} sets it too, so the trial's value would not reach it; take "
                "it out of the stage or out of the space"
            )


def _sets(tree: Any, parts: Sequence[str]) -> bool:
    """Whether a partial tree holds a key, or the section above it as one value."""
    for part in parts:
        if not isinstance(tree, Mapping):
            return True
        if part not in tree:
            return False
        tree = tree[part]
    return True


def _to_check(space: Space) -> list[dict[str, Any]]:
    values = {key: _samples(entry) for key, entry in space.items()}
    found = list(itertools.islice(_combined(space, values), _MOST_CHECKED + 1))
    if len(found) <= _MOST_CHECKED:
        return found
    draw, chosen = random.Random(0), []
    for place in range(_MOST_CHECKED):
        # Every value of every key comes up, each with others drawn at random.
        params: dict[str, Any] = {}
        for key in in_order(space):
            if applies(space[key], params):
                options = values[key]
                params[key] = options[place % len(options)] if place % 2 else draw.choice(options)
        if params not in chosen:
            chosen.append(params)
    return chosen


def _samples(entry: Range | Choices) -> list[Any]:
    """Values of a key that stand for all: the choices, or a range's ends and a value between."""
    if isinstance(entry, Choices):
        return list(entry.choices)
    if all(isinstance(value, int) for value in (entry.low, entry.high, entry.step or 1)):
        return [entry.low, entry.high]
    return [float(entry.low), float(entry.low + 0.37 * (entry.high - entry.low)), float(entry.high)]


def _wrong_combination(config: RunConfig, tree: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    """Why a trial with these settings could not start; None: nothing is known against it."""
    from amidkd.config import stage_configs
    from amidkd.training import check_policy, check_training_settings

    folder = Path(config.output.folder) / "trials" / "0000"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = trial_config(tree, params, seed=0, folder=folder)
            stages = stage_configs(trial)
            for stage in stages:
                check_training_settings(stage)
                check_policy(stage, "sft" if stage.teacher is None else "distill")
    except SettingError as error:
        lines = str(error).splitlines()
        return " ".join(line.strip() for line in (lines[1:] or lines))
    if all(stage.teacher is None for stage in stages):
        idle = [key for key in params if any(_under(key, taught) for taught in _TAUGHT)]
        if idle:
            return f"{' and '.join(idle)} has no effect without a teacher; add a teacher section"
    return _without_effect(trial, params)


def _without_effect(config: RunConfig, params: Mapping[str, Any]) -> str | None:
    """A key of the assistant where the objective has none: trials that differ in it alone would be one trial."""
    objective = config.objective
    if objective.terms is not None or "assistant" in objective.between:
        return None
    own = objective.student_text
    if own is not None and (own.terms is not None or "assistant" in own.between):
        return None
    idle = [key for key in ("objective.alpha", "objective.lam") if any(_under(each, key) for each in params)]
    if not idle:
        return None
    return (
        f"{' and '.join(idle)} has no effect where objective.between is {objective.between}, which has no assistant; "
        "add `when: {objective.between: [teacher||assistant, student||assistant]}`"
    )


def _under(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _shown(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in params.items())
