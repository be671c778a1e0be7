"""Numbers and settings as people read them."""

from amidkd.config import (
    CachedTeacher,
    EnsembleTeacher,
    LiveTeacher,
    ObjectiveConfig,
    PolicyConfig,
    RunConfig,
    ServedTeacher,
    SumConfig,
    TeacherConfig,
    TermConfig,
    WeightingConfig,
)
from amidkd.config.objective import AdaptiveSchedule, ConstantSchedule, PiecewiseSchedule, ScheduleConfig

__all__ = [
    "count",
    "describe_objective",
    "describe_policy",
    "describe_teacher",
    "describe_term",
    "duration",
    "mebibytes",
    "number",
    "signed",
    "verb_of",
]


def number(value: float) -> str:
    """A setting's number, as short as it is exact enough to read: −0.5, 1e−05."""
    return f"{value:g}".replace("-", "−")


def signed(value: float) -> str:
    """The same with a plus in front of what is above 0."""
    return ("+" if value > 0 else "") + number(value)


def count(value: float) -> str:
    """A number of things in three digits: 107 k, 2.46 M."""
    for size, suffix in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time in one or two units: 0.8 s, 42 s, 3 min 5 s, 2 h 14 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def mebibytes(value: float) -> str:
    """An amount of memory given in MiB (2²⁰ bytes)."""
    return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"


_NAMES = {
    "kl": "KL",
    "reverse_kl": "reverse KL",
    "jeffreys": "Jeffreys",
    "jensen_shannon": "Jensen–Shannon",
    "total_variation": "total variation",
    "squared_hellinger": "squared Hellinger",
    "chi_squared": "χ²",
    "amari": "Amari",
    "alpha_beta": "alpha-beta",
}


def describe_objective(objective: ObjectiveConfig) -> str:
    """An objective in one line: ``KL(teacher‖assistant), α = −0.5, λ = 0.1``."""
    text = _describe_sum(objective)
    if objective.student_text is not None:
        text += f"; on the student's text {_describe_sum(objective.student_text)}"
    if objective.temperature != 1:
        text += f", temperature {number(objective.temperature)}"
    if objective.cross_entropy_weight:
        text += f", plus {number(objective.cross_entropy_weight)} · cross-entropy on the labels"
    return text + _describe_weighting(objective.weighting)


def _describe_sum(objective: SumConfig) -> str:
    if objective.terms is None:
        return describe_term(objective)
    return " + ".join(f"{number(term.weight)} · [{describe_term(term)}]" for term in objective.terms)


def _describe_weighting(weighting: WeightingConfig) -> str:
    parts = [
        f"{origin}'s text × {number(value)}"
        for origin in ("data", "teacher", "student")
        if (value := getattr(weighting, origin)) != 1
    ]
    if weighting.by != "none" and weighting.strength > 0:
        measure = weighting.by.replace("_", " ")
        parts.append(f"more where {measure} is {weighting.favour} (strength {number(weighting.strength)})")
    return f"; weights: {', '.join(parts)}" if parts else ""


def describe_policy(policy: PolicyConfig) -> str:
    """Whose text is learnt from, in a few words."""
    if policy.kind == "mixed":
        return f"the student's own in {policy.on_policy_fraction:.0%} of the steps, the data's in the others"
    if policy.kind == "adaptive":
        return (
            f"the student's own with probability φ, from {number(policy.initial_threshold)} upwards as the validation "
            f"loss rises; old text used again ({policy.replay_ratio})"
        )
    if policy.kind == "sequence_level":
        return f"text that the {policy.writer} wrote beforehand"
    return {
        "dataset": "the data's",
        "on_policy": "the student's own",
        "contrastive": "the teacher's and the student's answer to each prompt",
        "warmup": "the student's own, corrected by the teacher",
    }[policy.kind]


def describe_teacher(teacher: TeacherConfig) -> str:
    """Where a teacher's distributions came from, where that is not one model in memory; else nothing.

    Args:
        teacher: The run file's ``teacher``.
    """
    if isinstance(teacher, EnsembleTeacher):
        how = (
            "weights by row"
            if teacher.weights == "by_row"
            else "weights searched"
            if teacher.weights == "search"
            else ""
        )
        if isinstance(teacher.weights, list):
            how = "weights " + ", ".join(number(weight) for weight in teacher.weights)
        dropped = f"each left out of {100 * teacher.drop:g} % of the steps" if teacher.drop else ""
        return ", ".join([f"{len(teacher.teachers)} teachers at once", *filter(None, (how, dropped))])
    if isinstance(teacher, CachedTeacher | ServedTeacher):
        form = (
            f"its {teacher.top_k} likeliest tokens and the rest" if teacher.format == "top_k" else "its hidden states"
        )
        if isinstance(teacher, CachedTeacher) and teacher.format == "samples":
            form = f"its {teacher.top_k} likeliest tokens and {teacher.draws} draws from the rest"
        return f"{form}, {'from disk' if teacher.kind == 'cached' else 'from a server'}"
    if isinstance(teacher, LiveTeacher) and teacher.alignment == "text":
        return "of another tokenizer, matched by text"
    return ""


def describe_term(term: TermConfig) -> str:
    """One divergence of an objective in one line."""
    name = _NAMES[term.divergence.name]
    parameters = term.divergence.parameters
    if parameters:
        name += "[" + ", ".join(f"{key} = {number(value)}" for key, value in parameters.items()) + "]"
    text = f"{name}({term.between.replace('||', '‖')})"
    if "assistant" in term.between:
        text += f", α = {_setting(term.alpha)}, λ = {_setting(term.lam)}"
    if term.detach_assistant:
        text += ", assistant detached"
    return text


def _setting(value: float | ScheduleConfig) -> str:
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, ConstantSchedule):
        return number(value.value)
    if isinstance(value, PiecewiseSchedule):
        return " → ".join(number(point) for _, point in value.points)
    path = f"{number(value.start)} → {number(value.end)}"
    return f"{path} (adaptive)" if isinstance(value, AdaptiveSchedule) else path


def verb_of(config: RunConfig) -> str:
    """The command that trains with a run file: ``distill``, or ``sft`` where nothing teaches.

    Args:
        config: The run file.
    """
    return "sft" if config.teacher is None and config.stages is None else "distill"
