"""The verbs that train: from a run file to a run folder."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import warn

from amidkd.config import PretrainedStudent, RunConfig, WarmStartConfig, dump_yaml
from amidkd.data import Encoder, training_rows
from amidkd.errors import SettingError, SettingWarning
from amidkd.kernels import check_backend, describe
from amidkd.models import load_tokenizer, make_student, save_student, student_tokenizer, vocabulary_size
from amidkd.policies import make_policy
from amidkd.record import RunFolder, commit_of, now, versions, write_atomic
from amidkd.teachers import LiveTeacher, make_teacher
from amidkd.training.arguments import check_training_settings, steps_of, training_arguments
from amidkd.training.card import write_card
from amidkd.training.chain import run_stages
from amidkd.training.checkpoint import chosen_checkpoint, keep_newest
from amidkd.training.fingerprint import check_same_run, hash_examples, hash_student, run_settings
from amidkd.training.folders import WARM_START, check_folder, holds_a_run
from amidkd.training.lessons import (
    Answering,
    Lessons,
    answer_prompts,
    check_room,
    check_tokens,
    gather_lessons,
    read_rows,
    rows_to_answer,
    warm_start_of,
)
from amidkd.training.objective import ScheduledObjective, learns_through_assistant
from amidkd.training.settings import LossSettings
from amidkd.training.stages import StageResult, load_corpus, stage_arguments, train_stage

__all__ = ["distill", "run_generate", "sft", "warm_start_of"]

_log = logging.getLogger("amidkd")


@dataclass
class _Run:
    """A run under way: what every part of it needs. ``whole`` is the run file, of which it may be a stage."""

    config: RunConfig
    verb: str
    folder: RunFolder
    first: bool
    wait: Callable[[], None]
    device: Any
    processes: int
    whole: RunConfig
    tokenizer: Any = None
    teacher: LiveTeacher | None = None

    def note(self, **entries: Any) -> None:
        """Write to the record, from the first process."""
        if self.first:
            self.folder.update_record(**entries)


def distill(config: RunConfig) -> RunFolder:
    """Train a student on its teacher's distributions; with ``stages``, run them one after the other.

    Args:
        config: The run.

    Returns:
        The run folder, with ``student/`` and the record.

    Raises:
        SettingError: Whatever cannot be used, before work starts.
        LossError: The loss is not finite; the last checkpoint stays good.
    """
    if config.stages is not None:
        return run_stages(config, _train)
    if config.teacher is None:
        raise SettingError("distill needs a `teacher` section; to train without a teacher: amidkd sft")
    return _train(config, "distill")


def sft(config: RunConfig) -> RunFolder:
    """Train a model by cross-entropy: a teacher, a student's starting point or a baseline.

    Rows without a completion are dropped, or answered by the teacher where the run has one and ``data.unlabelled``
    says so.

    Args:
        config: The run.

    Returns:
        The run folder, with ``student/`` and the record.

    Raises:
        SettingError: Whatever cannot be used, before work starts.
        LossError: The loss is not finite; the last checkpoint stays good.
    """
    if config.stages is not None:
        raise SettingError(
            "stages: run them with amidkd distill; each has a verb of its own (stages: [{verb: sft}, ...])"
        )
    if config.student.warm_start:
        warn("student.warm_start has no effect in sft, which is fine-tuning already", SettingWarning, stacklevel=2)
    return _train(config, "sft")


def run_generate(config: RunConfig) -> Path:
    """Write the teacher's answers to ``generated.parquet`` of the run folder.

    To the rows without a completion, as ``distill`` would; or where all rows have one, to all of them.

    Args:
        config: The run.

    Returns:
        The file.

    Raises:
        SettingError: No teacher, no prompt, or a file made with other settings.
    """
    if config.teacher is None:
        raise SettingError("generate needs a `teacher` section: whose answers?")
    run = _begin(config, "generate")
    encoder = Encoder(run.tokenizer, config.data)
    rows = training_rows(config)
    prompts = [row for row in rows if not row.labelled] or [row for row in rows if row.text is None]
    if not prompts:
        raise SettingError(f"{config.data.train}: rows of plain `text` have no prompt to answer")
    run.teacher = make_teacher(config.teacher, student_tokenizer=run.tokenizer, device=run.device)
    if run.first:
        answer_prompts(prompts, _answering(run, encoder))
    run.wait()
    return run.folder.generated_file


def _train(config: RunConfig, verb: str, whole: RunConfig | None = None) -> RunFolder:
    run = _begin(config, verb, whole)
    check_backend(config.kernels.backend, run.device)
    resume = config.training.resume_from_checkpoint
    chosen_checkpoint(run.folder.path, resume)
    check_folder(config, run.folder, verb=verb, processes=run.processes)
    encoder = Encoder(run.tokenizer, config.data)
    material = read_rows(config, encoder)
    answers = bool(rows_to_answer(config, material, verb))
    if config.teacher is not None and (verb == "distill" or answers):
        run.teacher = make_teacher(config.teacher, student_tokenizer=run.tokenizer, device=run.device)
    # Before the teacher answers, which may take hours: a student that cannot be made stops the run here.
    student = _fresh_student(run)
    models = {"student": student} if run.teacher is None else {"student": student, "teacher": run.teacher.model}
    check_room(config, material, models)
    began = time.perf_counter()
    answering = _answering(run, encoder) if answers and run.teacher is not None else None
    lessons = gather_lessons(config, material, answering, verb=verb, first=run.first, wait=run.wait)
    seconds = time.perf_counter() - began
    vocab_size = vocabulary_size(run.tokenizer) if run.teacher is None else run.teacher.vocab_size
    check_tokens(lessons, vocab_size)
    corpus = load_corpus(config, run.tokenizer, vocab_size=vocab_size)
    settings = run_settings(config, **_contents(run, lessons, corpus))
    if resume and holds_a_run(run.folder):
        check_same_run(run.folder.record().get("fingerprint", {}), settings, where=str(run.folder.path))
        if resume is True and run.folder.record().get("finished") and run.folder.student.is_dir():
            _log.info("%s is complete; nothing to do", run.folder.path)
            return run.folder
    run.wait()
    _log.info("The loss is computed by: %s", describe(config.kernels.backend, run.device))
    _open_record(run, lessons, settings)
    if answering is not None and "answers" not in run.folder.record().get("stages", {}):
        run.note(stages={"answers": {"answers": lessons.counts["answered by the teacher"], "seconds": seconds}})
    student = _warmed_student(run, student, lessons, settings, vocab_size)
    result = _main_stage(run, student, lessons, settings, vocab_size, corpus)
    _close(run, student, result)
    return run.folder


def _begin(config: RunConfig, verb: str, whole: RunConfig | None = None) -> _Run:
    """Check the settings, start the process group, load the tokenizer."""
    check_training_settings(config)
    folder = RunFolder(Path(config.output.folder))
    if folder.path.exists() and not folder.path.is_dir():
        raise SettingError(f"output.folder: {folder.path} is a file; name a folder")
    arguments = training_arguments(config, folder.path)
    run = _Run(
        config=config,
        verb=verb,
        folder=folder,
        first=arguments.process_index == 0,
        wait=arguments.distributed_state.wait_for_everyone,
        device=arguments.device,
        processes=arguments.world_size,
        whole=config if whole is None else whole,
    )
    source = student_tokenizer(config.student, None if config.teacher is None else config.teacher.model)
    run.tokenizer = load_tokenizer(source, trust_remote_code=config.student.trust_remote_code)
    return run


def _contents(run: _Run, lessons: Lessons, corpus: Any) -> dict[str, Any]:
    """What files hold, and how the run is spread; paths may change."""
    return {
        "verb": run.verb,
        "processes": run.processes,
        "contents.data": hash_examples(lessons.examples),
        "contents.warm": None if lessons.warm is lessons.examples else hash_examples(lessons.warm),
        "contents.corpus": None if corpus is None else hash_examples(corpus.windows),
        "contents.student": hash_student(run.config),
        "contents.teacher": None if run.teacher is None else run.teacher.fingerprint(),
    }


def _answering(run: _Run, encoder: Encoder) -> Answering:
    assert run.teacher is not None
    return Answering(run.teacher, run.config, run.tokenizer, encoder, run.folder.generated_file)


def _open_record(run: _Run, lessons: Lessons, settings: dict[str, Any]) -> None:
    """Write the run file and the record's first entries."""
    if not run.first:
        return
    config, folder = run.config, run.folder
    write_atomic(folder.run_file, dump_yaml(run.whole))
    going_on = folder.record().get("fingerprint") == settings
    folder.update_record(
        verb=run.verb,
        config=config.model_dump(mode="json"),
        versions=versions(),
        commit=commit_of(Path.cwd()),
        seeds={
            "training": config.training.seed,
            "labels": config.data.label_seed,
            "generation": config.data.generation.seed,
        },
        device=_device_name(run.device),
        processes=run.processes,
        data=lessons.counts,
        fingerprint=settings,
        started=folder.record()["started"] if going_on else now(),
        finished=None,
    )


def _device_name(device: Any) -> str:
    import platform

    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def _fresh_student(run: _Run) -> Any:
    config = run.config
    return make_student(
        config.student,
        tokenizer=run.tokenizer,
        seed=config.training.seed,
        teacher_model=None if run.teacher is None else run.teacher.model,
        teacher_source=None if config.teacher is None else config.teacher.model,
    )


def _warmed_student(run: _Run, student: Any, lessons: Lessons, settings: dict[str, Any], vocab_size: int) -> Any:
    """The student where the main stage starts; after a warm start always as it was saved, also in one go."""
    config = run.config
    warm = warm_start_of(config) if run.verb == "distill" else None
    if warm is None:
        return student
    folder = RunFolder(run.folder.path / WARM_START)
    if not folder.student.is_dir():
        result = train_stage(
            config,
            folder.path,
            name="warm start",
            student=student,
            tokenizer=run.tokenizer,
            lessons=replace(lessons, examples=lessons.warm),
            loss=LossSettings(vocab_size=vocab_size, kernels=config.kernels),
            settings={**settings, "stage": WARM_START},
            differing=_warm_arguments(config, warm),
        )
        if run.first:
            save_student(student, run.tokenizer, folder.student, merge_lora=False)
            keep_newest(folder.path, 0)
        run.note(stages={WARM_START: result.as_record()})
    run.wait()
    return _saved_student(run, folder.student)


def _warm_arguments(config: RunConfig, warm: WarmStartConfig) -> dict[str, Any]:
    return {
        "num_train_epochs": warm.epochs,
        "max_steps": warm.max_steps or -1,
        "learning_rate": warm.learning_rate or 2 * config.training.learning_rate,
    }


def _saved_student(run: _Run, folder: Path) -> Any:
    student = run.config.student
    if student.lora is None:
        saved = PretrainedStudent(model=str(folder), dtype=student.dtype, trust_remote_code=student.trust_remote_code)
        return make_student(saved, tokenizer=run.tokenizer, seed=run.config.training.seed)
    from peft import load_peft_weights, set_peft_model_state_dict

    model = _fresh_student(run)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    return model


def _main_stage(
    run: _Run, student: Any, lessons: Lessons, settings: dict[str, Any], vocab_size: int, corpus: Any
) -> StageResult:
    config, objective = run.config, run.config.objective
    teacher = run.teacher if run.verb == "distill" else None
    run.note(models=_sizes(student, run.teacher))
    if teacher is None:
        loss = LossSettings(vocab_size=vocab_size, kernels=config.kernels)
    else:
        steps = steps_of(stage_arguments(config, run.folder.path, len(lessons.examples), None), len(lessons.examples))
        loss = LossSettings(
            objective=ScheduledObjective(objective, steps=steps),
            cross_entropy_weight=objective.cross_entropy_weight,
            temperature=objective.temperature,
            vocab_size=vocab_size,
            kernels=config.kernels,
            warn_where_stuck=warm_start_of(config) is None and learns_through_assistant(objective) and corpus is None,
        )
    return train_stage(
        config,
        run.folder.path,
        name=run.verb,
        student=student,
        tokenizer=run.tokenizer,
        lessons=lessons,
        loss=loss,
        settings={**settings, "stage": run.verb},
        teacher=teacher,
        policy=make_policy(config.policy),
        corpus=corpus,
    )


def _sizes(student: Any, teacher: LiveTeacher | None) -> dict[str, Any]:
    parameters = list(student.parameters())
    sizes: dict[str, Any] = {
        "student": {
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        }
    }
    if teacher is not None:
        sizes["teacher"] = {"parameters": sum(p.numel() for p in teacher.model.parameters())}
    return sizes


def _close(run: _Run, student: Any, result: StageResult) -> None:
    """Save the student with its card, and finish the record."""
    config = run.config
    if run.first:
        lora = config.student.lora
        save_student(student, run.tokenizer, run.folder.student, merge_lora=lora is None or lora.merge)
        run.note(stages={run.verb: result.as_record()}, finished=now())
        if config.evaluation.after_training:
            from amidkd.evaluation import evaluate_run

            evaluate_run(config, run.folder)
        write_card(config, run.folder)
    run.wait()
