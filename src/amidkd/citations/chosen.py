"""Which works a run cites: those behind the settings that it uses."""

from collections.abc import Iterator

from amidkd.citations.works import CITATIONS, Citation
from amidkd.config import (
    EnsembleTeacher,
    LiveTeacher,
    RunConfig,
    SequenceLevelPolicy,
    StageTeacher,
    TermConfig,
    WarmupPolicy,
    members_of,
    stage_configs,
)

__all__ = ["citations_of"]


def citations_of(config: RunConfig) -> list[Citation]:
    """The works behind the settings that a run uses, the method's own first.

    Args:
        config: The run's settings.

    Returns:
        Each work once, in the order of :data:`CITATIONS`; with stages, what any of them uses. A run without a teacher
        uses no objective, so that it cites none of the distillation methods; nor does a warm-up, which has a loss of
        its own.

    Example:
        >>> from amidkd.config import parse
        >>> run = {"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o"}
        >>> [c.key for c in citations_of(parse({**run, "objective": {"alpha": -1}}))][0]
        'ko2024distillm'
    """
    used: set[str] = set()
    for stage in stage_configs(config):
        used |= {*_keys_of_objective(stage), *_keys_of_the_rest(stage)}
    for given in config.stages or ():
        if given.teacher is not None and any(isinstance(each, StageTeacher) for each in members_of(given.teacher)):
            used.add("mirzadeh2020improved")
    return [citation for key, citation in CITATIONS.items() if key in used]


def _keys_of_teacher(config: RunConfig) -> Iterator[str]:
    teacher = config.teacher
    if isinstance(teacher, EnsembleTeacher):
        if teacher.drop > 0:
            yield "son2021densely"
        if teacher.weights == "search":
            yield "ganta2022weighted"
        yield "amari2007integration"
    if isinstance(teacher, LiveTeacher) and teacher.alignment == "text":
        yield "boizard2025towards"


def _keys_of_objective(config: RunConfig) -> Iterator[str]:
    if config.teacher is None:
        return
    yield from _keys_of_teacher(config)
    if isinstance(config.policy, WarmupPolicy):
        yield "sun2025warmup"
        if config.policy.loss == "dpo":
            yield "rafailov2023direct"
        return
    yield "hinton2015distilling"
    objective = config.objective
    for part in (objective, objective.student_text):
        if part is None:
            continue
        terms: list[TermConfig] = list(part.terms) if part.terms is not None else [part]
        if _is_gkd(terms):
            yield "agarwal2024gkd"
        else:
            for term in terms:
                yield from _keys_of_term(term)


def _is_gkd(terms: list[TermConfig]) -> bool:
    """β·KL(teacher‖assistant) + (1−β)·KL(student‖assistant) with the arithmetic mean (design, §1)."""
    pairs = sorted(_as_kl(term) or "" for term in terms)
    return pairs == ["student||assistant", "teacher||assistant"] and all(
        term.alpha == -1 and term.lam == terms[0].lam for term in terms
    )


def _as_kl(term: TermConfig) -> str | None:
    """The ordered pair (a, b) for which the term is KL(a‖b), or None where it is another divergence."""
    if term.divergence.name == "kl":
        return term.between
    if term.divergence.name == "reverse_kl":
        return "||".join(reversed(term.between.split("||")))
    return None


def _keys_of_term(term: TermConfig) -> Iterator[str]:
    pair = _as_kl(term)
    if term.divergence.name == "alpha_beta":
        yield "wang2025abkd"
    if "assistant" not in term.between:
        if pair == "student||teacher":
            yield "gu2024minillm"
        return
    if term.alpha == -1 and pair in ("teacher||assistant", "student||assistant"):
        yield "ko2024distillm"
    elif term.alpha == 1 and pair == "assistant||student" and term.detach_assistant:
        yield "shing2025taid"
    else:
        yield from ("shin2026amid", "amari2007integration")
    if any(getattr(setting, "kind", None) == "adaptive" for setting in (term.alpha, term.lam)):
        yield "shing2025taid"


_OF_POLICY = {
    "on_policy": "agarwal2024gkd",
    "mixed": "agarwal2024gkd",
    "adaptive": "ko2024distillm",
    "contrastive": "ko2025distillm2",
}


def _keys_of_policy(config: RunConfig) -> Iterator[str]:
    policy = config.policy
    if isinstance(policy, SequenceLevelPolicy):
        yield "kim2016sequence" if policy.writer == "teacher" else "lin2020imitkd"
    elif policy.kind in _OF_POLICY:
        yield _OF_POLICY[policy.kind]


def _keys_of_the_rest(config: RunConfig) -> Iterator[str]:
    yield from _keys_of_policy(config)
    data = config.data
    if data.corpus is not None or data.prompt_template == "instruction":
        yield "gu2024minillm"
    if config.teacher is not None and data.label_fraction < 1 and data.unlabelled == "teacher_answers":
        yield "kim2016sequence"
    if config.student.lora is not None:
        yield "hu2022lora"
    yield from ("wolf2020transformers", "lin2004rouge")
    if config.teacher is not None:
        yield "leviathan2023speculative"
