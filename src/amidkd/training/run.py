"""The verbs that train: from a run file to a run folder."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from warnings import warn

from amidkd.config import (
    PretrainedStudent,
    RunConfig,
    WarmStartConfig,
    WarmupPolicy,
    dump_yaml,
    live_teacher,
)
from amidkd.data import Encoder, Row
from amidkd.errors import SettingError, SettingWarning
from amidkd.kernels import check_backend, describe
from amidkd.models import make_student, save_student, vocabulary_size
from amidkd.record import RunFolder, commit_of, now, this_process, versions, write_atomic
from amidkd.training.answering import given_folder, student_writes, text_examples
from amidkd.training.arguments import steps_of, training_arguments
from amidkd.training.chain import run_stages
from amidkd.training.checkpoint import chosen_checkpoint, keep_newest
from amidkd.training.context import Run, answering_of, begin, load_teacher
from amidkd.training.fingerprint import check_same_run, hash_examples, hash_student, run_settings
from amidkd.training.folders import WARM_START, check_folder, holds_a_run
from amidkd.training.lessons import (
    Lessons,
    check_room,
    check_tokens,
    gather_lessons,
    read_rows,
    rows_to_answer,
    warm_start_of,
)
from amidkd.training.main_stage import (
    check_policy,
    check_writer,
    main_loss,
    main_policy,
    model_sizes,
    validation_examples,
    watched_examples,
)
from amidkd.training.observing import Observer
from amidkd.training.preference import train_preference
from amidkd.training.presence import Notices
from amidkd.training.settings import LossSettings
from amidkd.training.sharing import in_common, shared_stage
from amidkd.training.stages import StageResult, load_corpus, stage_arguments, train_stage
from amidkd.training.teaching import prepare_teacher
from amidkd.training.warmup import correct

__all__ = ["distill", "sft"]

_log = logging.getLogger("amidkd")


def distill(config: RunConfig, *, observer: Observer | None = None, shared: Path | None = None) -> RunFolder:
    """Train a student on its teacher's distributions; with ``stages``, run them one after the other.

    Args:
        config: The run.
        observer: Follows the training, and may stop it.
        shared: Folder of what this run has in common with others: its warm start is made there, once. They must have
            all settings in common but those of ``objective`` and ``evaluation``.

    Returns:
        The run folder, with ``student/`` and the record.

    Raises:
        SettingError: Whatever cannot be used, before work starts.
        LossError: The loss is not finite; the last checkpoint stays good.
    """
    if config.stages is not None:
        return run_stages(config, lambda stage, verb, whole: _train(stage, verb, whole, observer=observer))
    if config.teacher is None:
        raise SettingError("distill needs a `teacher` section; to train without a teacher: amidkd sft")
    return _train(config, "distill", observer=observer, shared=shared)


def sft(config: RunConfig, *, observer: Observer | None = None) -> RunFolder:
    """Train a model by cross-entropy: a teacher, a student's starting point or a baseline.

    Rows without a completion are dropped, or answered by the teacher where the run has one and ``data.unlabelled``
    says so.

    Args:
        config: The run.
        observer: Follows the training, and may stop it.

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
    return _train(config, "sft", observer=observer)


def _train(
    config: RunConfig,
    verb: str,
    whole: RunConfig | None = None,
    *,
    observer: Observer | None = None,
    shared: Path | None = None,
) -> RunFolder:
    with Notices() as notices:
        run = begin(config, verb, whole)
        run.observer, run.shared = observer, shared
        try:
            return _carry_out(run, notices)
        finally:
            run.close()


def _carry_out(run: Run, notices: Notices) -> RunFolder:
    config, verb = run.config, run.verb
    check_backend(config.kernels.backend, run.device)
    check_policy(config, verb, run.processes)
    resume = config.training.resume_from_checkpoint
    chosen_checkpoint(run.folder.path, resume)
    check_folder(config, run.folder, verb=verb, processes=run.processes)
    _check_evaluation(run)
    encoder = Encoder(run.tokenizer, config.data)
    material = read_rows(config, encoder)
    asked = rows_to_answer(config, material, verb)
    if verb == "distill" or isinstance(config.policy, WarmupPolicy) or (asked and not student_writes(config)):
        load_teacher(run)
    # Before the teacher answers, which may take hours: a student that cannot be made stops the run here.
    student = _fresh_student(run)
    models = {"student": student} if run.in_memory is None else {"student": student, "teacher": run.in_memory.model}
    check_room(config, material, models)
    vocab_size = vocabulary_size(run.tokenizer) if run.teacher is None else run.teacher.vocab_size
    validation = validation_examples(config, encoder, vocab_size)
    arguments = training_arguments(config, run.folder.path)
    check_writer(config, student, run.tokenizer, arguments=arguments, vocab_size=vocab_size, folder=run.folder.path)
    began = time.perf_counter()
    text = text_examples(asked, material.prompts, answering_of(run, encoder))
    lessons = replace(gather_lessons(config, material, text, verb=verb), validation=validation)
    seconds = time.perf_counter() - began
    run.let_go_of_writer()
    check_tokens(lessons, vocab_size)
    taught = prepare_teacher(
        run.teacher if verb == "distill" else None,
        config,
        encoder=encoder,
        material=material,
        lessons=lessons,
        device=run.device,
    )
    corpus = load_corpus(config, run.tokenizer, vocab_size=vocab_size)
    settings = run_settings(config, **_contents(run, lessons, corpus))
    if resume and holds_a_run(run.folder):
        check_same_run(run.folder.record().get("fingerprint", {}), settings, where=str(run.folder.path))
        if resume is True and run.folder.record().get("finished") and run.folder.student.is_dir():
            _log.info("%s is complete; nothing to do", run.folder.path)
            return run.folder
    run.wait()
    _log.info("The loss is computed by: %s", describe(config.kernels.backend, run.device))
    _open_record(run, lessons, settings, notices)
    run.note(**taught)
    if text is not None and given_folder(config) is None and "answers" not in run.folder.record().get("stages", {}):
        run.note(stages={"answers": {"answers": len(text), "seconds": seconds}})
    student = _warmed_student(run, student, lessons, settings, vocab_size)
    _close(run, student, _main_stage(run, student, material.rows, lessons, settings, vocab_size, corpus))
    return run.folder


def _check_evaluation(run: Run) -> None:
    """What the evaluation at the end would refuse is refused now."""
    if run.config.evaluation.after_training:
        from amidkd.evaluation import check_evaluation

        check_evaluation(run.config, run.folder)


def _contents(run: Run, lessons: Lessons, corpus: Any) -> dict[str, Any]:
    """What files hold, and how the run is spread; paths may change."""
    return {
        "verb": run.verb,
        "processes": run.processes,
        "contents.data": hash_examples(lessons.examples),
        "contents.warm": None if lessons.warm is lessons.examples else hash_examples(lessons.warm),
        "contents.validation": hash_examples(lessons.validation) if lessons.validation else None,
        "contents.corpus": None if corpus is None else hash_examples(corpus.windows),
        "contents.student": hash_student(run.config),
        "contents.teacher": None if run.teacher is None else run.teacher.fingerprint(),
    }


def _open_record(run: Run, lessons: Lessons, settings: dict[str, Any], notices: Notices) -> None:
    """Write the run file and the record's first entries."""
    if not run.first:
        return
    config, folder = run.config, run.folder
    last = folder.path == Path(run.whole.output.folder)
    write_atomic(folder.run_file, dump_yaml(run.whole if last else config))
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
        process=this_process(),
    )
    notices.keep(run.note, folder.record().get("warnings", []) if going_on else [])


def _device_name(device: Any) -> str:
    import platform

    import torch

    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads)"


def _fresh_student(run: Run) -> Any:
    config = run.config
    return make_student(
        config.student,
        tokenizer=run.tokenizer,
        seed=config.training.seed,
        teacher_model=None if run.in_memory is None else run.in_memory.model,
        teacher_source=None if (named := live_teacher(config.teacher)) is None else named.model,
    )


def _warmed_student(run: Run, student: Any, lessons: Lessons, settings: dict[str, Any], vocab_size: int) -> Any:
    """The student where the main stage starts; after a warm start always as it was saved, also in one go."""
    config = run.config
    warm = warm_start_of(config) if run.verb == "distill" else None
    if warm is None:
        return student
    folder = RunFolder(run.folder.path / WARM_START)

    def train(place: Path) -> dict[str, Any]:
        result = train_stage(
            config,
            place,
            name="warm start",
            student=student,
            tokenizer=run.tokenizer,
            lessons=replace(lessons, examples=lessons.warm),
            loss=LossSettings(vocab_size=vocab_size, kernels=config.kernels),
            settings={**(settings if run.shared is None else in_common(settings)), "stage": WARM_START},
            differing=_warm_arguments(config, warm),
        )
        if run.first:
            save_student(student, run.tokenizer, RunFolder(place).student, merge_lora=False)
            keep_newest(place, 0)
        return result.as_record()

    if run.shared is None and not folder.student.is_dir():
        run.note(stages={WARM_START: train(folder.path)})
    elif run.shared is not None and WARM_START not in run.folder.record().get("stages", {}):
        run.note(stages={WARM_START: shared_stage(run.shared / WARM_START, folder.path, train)})
    run.wait()
    return _saved_student(run, folder.student)


def _warm_arguments(config: RunConfig, warm: WarmStartConfig) -> dict[str, Any]:
    return {
        "num_train_epochs": warm.epochs,
        "max_steps": warm.max_steps or -1,
        "learning_rate": warm.learning_rate or 2 * config.training.learning_rate,
    }


def _saved_student(run: Run, folder: Path) -> Any:
    student = run.config.student
    if student.lora is None:
        saved = PretrainedStudent(model=str(folder), dtype=student.dtype, trust_remote_code=student.trust_remote_code)
        return make_student(saved, tokenizer=run.tokenizer, seed=run.config.training.seed)
    from peft import load_peft_weights, set_peft_model_state_dict

    model = _fresh_student(run)
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    return model


def _main_stage(
    run: Run,
    student: Any,
    rows: Sequence[Row],
    lessons: Lessons,
    settings: dict[str, Any],
    vocab_size: int,
    corpus: Any,
) -> StageResult:
    run.note(models=model_sizes(student, None if run.in_memory is None else run.in_memory.model))
    settings = {**settings, "stage": run.verb}
    policy = run.config.policy
    if not isinstance(policy, WarmupPolicy):
        return _trained(run, student, lessons, settings, vocab_size, corpus)
    encoder = Encoder(run.tokenizer, run.config.data)
    found = correct(rows, lessons, answering_of(run, encoder), student=student, folder=run.folder)
    if "corrections" not in run.folder.record().get("stages", {}):
        run.note(stages={"corrections": found.counts})
    if policy.loss == "cross_entropy":
        return _trained(run, student, found.lessons, settings, vocab_size, corpus)
    return train_preference(
        run.config, run.folder.path, student=student, tokenizer=run.tokenizer, pairs=found.pairs, settings=settings
    )


def _trained(
    run: Run, student: Any, lessons: Lessons, settings: dict[str, Any], vocab_size: int, corpus: Any
) -> StageResult:
    config = run.config
    soft = run.verb == "distill" and not isinstance(config.policy, WarmupPolicy)
    # Of stages, the last one's validation loss is that of the run.
    observer = run.observer if run.folder.path == Path(run.whole.output.folder) else None
    arguments = stage_arguments(config, run.folder.path, len(lessons.examples), None)
    return train_stage(
        config,
        run.folder.path,
        name=run.verb,
        student=student,
        tokenizer=run.tokenizer,
        lessons=lessons,
        loss=main_loss(
            config,
            verb="distill" if soft else "sft",
            steps=steps_of(arguments, len(lessons.examples)),
            vocab_size=vocab_size,
            corpus=corpus is not None,
        ),
        settings=settings,
        teacher=run.teacher if soft else None,
        policy=main_policy(
            config,
            student=student,
            tokenizer=run.tokenizer,
            lessons=lessons,
            arguments=arguments,
            vocab_size=vocab_size,
            folder=run.folder.path,
        ),
        corpus=corpus,
        observer=observer,
        watched=watched_examples(observer, config, run.tokenizer, vocab_size),
    )


def _close(run: Run, student: Any, result: StageResult) -> None:
    """Save the student with its card, and finish the record."""
    config = run.config
    if run.first:
        lora = config.student.lora
        save_student(student, run.tokenizer, run.folder.student, merge_lora=lora is None or lora.merge)
        run.note(stages={run.verb: result.as_record()}, finished=now())
        if config.evaluation.after_training:
            from amidkd.evaluation import evaluate_run

            evaluate_run(config, run.folder)
        # Loads templates and the like, which training itself has no need of.
        from amidkd.report.card import write_card

        write_card(config, run.folder, run.whole)
    run.wait()
