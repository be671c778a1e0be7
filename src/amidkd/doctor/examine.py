"""The doctor's visit: one line a check, in the order in which a run would need them."""

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amidkd.config import CachedTeacher, ContrastivePolicy, RunConfig, TransformersEngine, live_teacher, stage_configs
from amidkd.data import Encoder, Example, Row, Sequences, collate, evaluation_rows, training_rows
from amidkd.doctor.cost import Cost, StepTimer, answering_seconds, optimizer_steps, peak_memory_mb, writing_cost
from amidkd.errors import SettingError, SettingWarning
from amidkd.kernels import describe
from amidkd.models import Backbone, load_tokenizer, make_student, pad_id_of, student_tokenizer, vocabulary_size
from amidkd.policies import writes_while_training
from amidkd.policies.texts import answer_examples, is_complete, read_answers
from amidkd.record import RunFolder
from amidkd.report.words import describe_policy
from amidkd.teachers import LiveTeacher, make_teacher, self_distillation_loss, teacher_tokenizer
from amidkd.teachers.alignment import TextTeacher
from amidkd.training import check_training_settings, warm_start_of
from amidkd.training.lessons import check_room, read_rows, rows_to_answer
from amidkd.training.losses import hard_loss, soft_loss
from amidkd.training.main_stage import check_policy, main_loss

__all__ = ["examine"]

SELF_LOSS_LIMIT = 1e-3
"""Nats a token. Rounding in bfloat16 stays below; a head read wrongly is off by whole nats."""


@dataclass
class _Visit:
    """What the checks have found so far, for the checks after them."""

    config: RunConfig
    stages: Sequence[RunConfig]
    tokenizer: Any = None
    encoder: Any = None
    teacher: Any = None
    student: Any = None
    labelled: list[Example] = field(default_factory=list)
    prompts: list[Row] = field(default_factory=list)
    asked: list[Row] = field(default_factory=list)
    material: Any = None
    writing: float = 0.0

    @property
    def model(self) -> LiveTeacher | None:
        """The teacher's model, where it is in memory."""
        return self.teacher if isinstance(self.teacher, LiveTeacher) else None

    @property
    def batch(self) -> Sequences:
        """A first batch: labelled rows, or prompts whose last token stands for an answer's first."""
        size = self.config.training.per_device_train_batch_size
        return collate(self.batches(size)[0], pad_id=pad_id_of(self.tokenizer))

    def batches(self, size: int) -> list[list[Example]]:
        """Examples in batches; each prompt without a label stands in with its own tokens supervised."""
        found = list(self.labelled)
        if not found:
            for row in self.prompts[: 4 * size]:
                tokens = tuple(self.encoder.prompt_tokens(row) or ())
                if len(tokens) > 1:
                    found.append(Example(tokens, (False, *[True] * (len(tokens) - 1)), row.index))
        if not found:
            raise SettingError("no row is left to learn from")
        while len(found) < size:
            found.extend(found)
        return [found[start : start + size] for start in range(0, len(found) - size + 1, size)]


def examine(config: RunConfig, *, show: Callable[[str], None]) -> bool:
    """Go through everything that could stop a run or make it useless, and estimate its cost.

    Of a run with stages the settings of all are checked, and the first is gone through: the others start from a
    student that is not there yet.

    Args:
        config: The run.
        show: Takes each line of the findings.

    Returns:
        Whether the run can start. The estimate is left in the run folder (``doctor.json``).
    """
    stages = stage_configs(config)
    visit = _Visit(stages[0], stages)
    failed = False
    for name, check in _CHECKS:
        if failed and check is not _rows:
            show(f"  –     {name}: not looked at, since an earlier check failed")
            continue
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SettingWarning)
            try:
                mark, text = "ok", check(visit)
            except SettingError as error:
                mark, text, failed = "WRONG", str(error), True
        show(f"  {mark:5} {name}: {text}")
        for warning in caught:
            if issubclass(warning.category, SettingWarning):
                show(f"  note  {name}: {warning.message}")
    if visit.teacher is not None:
        visit.teacher.close()
    show("The run can start." if not failed else "The run cannot start; mend what is marked WRONG.")
    return not failed


def _settings(visit: _Visit) -> str:
    for stage in visit.stages:
        check_training_settings(stage)
    text = f"run folder {visit.stages[-1].output.folder}"
    return text if len(visit.stages) == 1 else f"{text}; {len(visit.stages)} stages, of which the first is looked at"


def _rows(visit: _Visit) -> str:
    rows = training_rows(visit.config)
    labelled = sum(row.labelled for row in rows)
    text = f"{len(rows):,} to learn from, {labelled:,} with a label"
    data, evaluation = visit.config.data, visit.config.evaluation
    if evaluation.data is None and data.validation is None and data.validation_rows is None:
        return text + "; none to evaluate on (data.validation)"
    return text + f"; {len(evaluation_rows(visit.config)):,} to evaluate on"


def _vocabulary(visit: _Visit) -> str:
    config = visit.config
    folder = Path(config.output.folder)
    source = student_tokenizer(config.student, teacher_tokenizer(config.teacher, folder))
    visit.tokenizer = load_tokenizer(source, trust_remote_code=config.student.trust_remote_code)
    if config.teacher is None:
        return f"{len(visit.tokenizer):,} tokens; no teacher (amidkd sft)"
    visit.teacher = make_teacher(config.teacher, student_tokenizer=visit.tokenizer, folder=folder)
    if isinstance(visit.teacher, TextTeacher):
        return f"teacher and student have other tokenizers, which share {visit.teacher.shared_count:,} tokens"
    text = f"teacher and student agree on {visit.teacher.vocab_size:,} tokens"
    if visit.model is None:
        return f"{text}; the teacher is {config.teacher.kind}: {config.teacher.title}"
    return f"{text}; the teacher's head has {visit.model.backbone.width:,} rows"


def _tokens(visit: _Visit) -> str:
    visit.encoder = Encoder(visit.tokenizer, visit.config.data)
    material = read_rows(visit.config, visit.encoder)
    encoded, visit.material = material.encoded, material
    visit.labelled, visit.prompts = encoded.examples, encoded.prompts
    verb = "sft" if visit.teacher is None else "distill"
    visit.asked = rows_to_answer(visit.config, material, verb) if visit.teacher is not None else []
    if visit.asked and isinstance(visit.config.teacher, CachedTeacher):
        # A cache speaks of the text that was written, not of prompts alone.
        visit.labelled, visit.asked = [*visit.labelled, *_written(visit)], []
    if not visit.labelled and not (visit.prompts and visit.teacher is not None):
        raise SettingError("no row is left to learn from; " + _dropped(encoded.dropped))
    parts = []
    if visit.labelled:
        lengths = [len(example.tokens) for example in visit.labelled]
        parts.append(f"rows {_spread(lengths)} tokens, {sum(e.token_count() for e in visit.labelled):,} supervised")
    if visit.asked:
        sample = [len(visit.encoder.prompt_tokens(row) or ()) for row in visit.asked[:1000]]
        parts.append(f"{len(visit.asked):,} prompts to answer first, {_spread(sample)} tokens")
    if encoded.truncated:
        parts.append(f"{encoded.truncated:,} rows cut at data.max_length = {visit.config.data.max_length}")
    if encoded.dropped:
        parts.append(_dropped(encoded.dropped))
    return "; ".join(parts)


def _written(visit: _Visit) -> list[Example]:
    """The text that was written before the cache was made."""
    folder = RunFolder(Path(visit.config.output.folder)).generated
    if not is_complete(folder):
        raise SettingError(
            f"{len(visit.asked):,} rows have no completion, and what the teacher wrote to them is not in {folder}; run "
            "`amidkd cache` with this run file, which has it written first"
        )
    return answer_examples(read_answers(folder), visit.encoder)


def _dropped(reasons: dict[str, int]) -> str:
    return "dropped: " + (", ".join(f"{count:,} ({reason})" for reason, count in reasons.items()) or "none")


def _spread(lengths: Sequence[int]) -> str:
    return f"{min(lengths)} / {statistics.median(lengths):.0f} / {max(lengths)} (least / median / most)"


def _template(visit: _Visit) -> str:
    example = visit.batches(1)[0][0]
    shown, count = [], 60
    tokens, targets = example.tokens[:count], example.targets[:count]
    pieces = visit.tokenizer.convert_ids_to_tokens(list(tokens))
    for place, (piece, target) in enumerate(zip(pieces, targets, strict=True)):
        opens = target and not (place and targets[place - 1])
        closes = target and not (place + 1 < len(targets) and targets[place + 1])
        shown.append(("⟦" if opens else "") + str(piece) + ("⟧" if closes else ""))
    rest = f" … and {len(example.tokens) - count} more" if len(example.tokens) > count else ""
    return f"the first row, supervised in ⟦ ⟧: {' '.join(shown)}{rest}"


def _self_teaching(visit: _Visit) -> str:
    if visit.teacher is None:
        return "no teacher"
    if visit.model is None:
        sequences = visit.batch
        visit.teacher.signal(sequences)
        return f"it has an answer to the first batch, {sequences.token_count():,} tokens"
    loss = self_distillation_loss(visit.model, visit.batch)
    if not abs(loss) <= SELF_LOSS_LIMIT:
        raise SettingError(
            f"the teacher as its own student has a loss of {loss:.3g} nats a token, not 0: its head is read wrongly. "
            "Report the model's type"
        )
    return f"its loss as its own student is {loss:.1e} nats a token"


def _student(visit: _Visit) -> str:
    config, teacher = visit.config, visit.model
    visit.student = make_student(
        config.student,
        tokenizer=visit.tokenizer,
        seed=config.training.seed,
        teacher_model=None if teacher is None else teacher.model,
        teacher_source=None if (named := live_teacher(config.teacher)) is None else named.model,
    )
    total = sum(p.numel() for p in visit.student.parameters())
    trainable = sum(p.numel() for p in visit.student.parameters() if p.requires_grad)
    text = f"{trainable:,} of {total:,} parameters are trainable"
    if teacher is None:
        return text
    size = sum(p.numel() for p in teacher.model.parameters())
    return f"{text}; the teacher has {size:,} ({size / total:.1f} times as many)"


def _policy(visit: _Visit) -> str:
    config, policy = visit.config, visit.config.policy
    check_policy(config, "sft" if visit.teacher is None else "distill")
    models = {"student": visit.student} | ({} if visit.model is None else {"teacher": visit.model.model})
    material = visit.material
    check_room(config, material, models)
    text = describe_policy(policy)
    if not writes_while_training(policy):
        return text
    if not isinstance(policy.generation.engine, TransformersEngine):
        return f"{text}; written by {policy.generation.engine.kind}, which is not asked here"
    found = writing_cost(config, policy.generation, visit.student, visit.tokenizer, list(material.prompts.values()))
    part = policy.on_policy_fraction if policy.kind == "mixed" else 1.0
    visit.writing = part * found.seconds
    return (
        f"{text}; the student as it is now writes {found.answers} answers in {found.seconds:.2g} s "
        f"({found.tokens / found.seconds:,.0f} tokens/s, {found.tokens / found.answers:.0f} tokens each)"
    )


def _loss(visit: _Visit) -> Callable[..., Any]:
    """The run's loss at its first step, as a function of the student's signal and a batch."""
    config, teacher = visit.config, visit.teacher
    settings = main_loss(
        config,
        verb="sft" if teacher is None else "distill",
        steps=1,
        vocab_size=vocabulary_size(visit.tokenizer) if teacher is None else teacher.vocab_size,
        corpus=False,
    )

    def loss(signal: Any, sequences: Sequences, *, metrics: bool = False) -> Any:
        shared: dict[str, Any] = {"student": signal, "sequences": sequences, "count": sequences.token_count()}
        if teacher is None:
            return hard_loss(settings, **shared)
        return soft_loss(settings, teacher=teacher.signal(sequences), step=0, measure=metrics, **shared)

    return loss


def _start(visit: _Visit) -> str:
    if visit.teacher is None:
        return "no teacher"
    backbone, batch = Backbone(visit.student), visit.batch
    with torch.no_grad():
        signal = backbone(batch.tokens_BT, batch.attention_BT, batch.predicts_BT())
        found = _loss(visit)(signal, batch, metrics=True)
    metrics = {name: float(value) for name, value in found.metrics.items()}
    text = (
        f"loss {float(found.loss):.4g}, KL(teacher‖student) {metrics['kl_teacher_student']:.3g} nats a token, "
        f"computed by {describe(visit.config.kernels.backend, found.loss.device)}"
    )
    if "responsibility" in metrics:
        text += f", mean ω {metrics['responsibility']:.2g}"
    warm = warm_start_of(visit.config)
    return text + ("" if warm is None else f", before {warm.epochs:g} epochs of warm start")


def _cost(visit: _Visit) -> str:
    config = visit.config
    training = config.training
    whole, size = _loss(visit), training.per_device_train_batch_size

    def loss(signal: Any, sequences: Sequences) -> Tensor:
        return whole(signal, sequences).loss

    timer = StepTimer(
        visit.student, loss, visit.batches(size), training.gradient_accumulation_steps, pad_id_of(visit.tokenizer)
    )
    step = timer.seconds_a_step() + visit.writing
    answered = len(visit.asked)
    examples = _examples(visit)
    steps = optimizer_steps(config, examples, epochs=training.num_train_epochs, max_steps=training.max_steps)
    warm = warm_start_of(config) if visit.teacher is not None else None
    warm_steps = 0
    if warm is not None:
        warm_steps = optimizer_steps(config, examples, epochs=warm.epochs, max_steps=warm.max_steps)
    answers = answering_seconds(config, visit.model, visit.encoder, visit.asked) if answered and visit.model else 0.0
    cost = Cost(seconds=answers + step * (steps + warm_steps), peak_memory_mb=peak_memory_mb(), steps=steps)
    cost.save(RunFolder(Path(config.output.folder)))
    parts = [f"{steps:,} steps of {step:.2g} s"]
    if warm_steps:
        parts.append(f"{warm_steps:,} steps of warm start")
    if answered:
        parts.append(f"{answered:,} answers in about {answers:,.0f} s")
    total = f"about {cost.seconds:,.0f} s and {cost.peak_memory_mb:,.0f} MiB on this machine, one process"
    return f"{total} ({', '.join(parts)})"


def _examples(visit: _Visit) -> int:
    """Rows of an epoch of the main stage."""
    config, answers = visit.config, len(visit.asked) * visit.config.data.generation.samples_per_prompt
    if config.policy.kind in ("on_policy", "warmup"):
        return len(visit.material.prompts)
    ignores_labels = config.policy.kind == "sequence_level" or (
        isinstance(config.policy, ContrastivePolicy) and config.policy.teacher_text == "answers"
    )
    return max(1, answers + (0 if ignores_labels else len(visit.labelled)))


_CHECKS: tuple[tuple[str, Callable[[_Visit], str]], ...] = (
    ("settings", _settings),
    ("rows", _rows),
    ("vocabulary", _vocabulary),
    ("tokens", _tokens),
    ("template", _template),
    ("teacher", _self_teaching),
    ("student", _student),
    ("policy", _policy),
    ("start", _start),
    ("cost", _cost),
)
