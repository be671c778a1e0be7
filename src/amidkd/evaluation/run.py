"""``amidkd eval``: a run's student beside its teacher, into the run's record."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amidkd.config import RunConfig
from amidkd.data import Encoder
from amidkd.evaluation.entry import Measured, write_evaluation
from amidkd.evaluation.extras import Extras
from amidkd.evaluation.forced import signal_of
from amidkd.evaluation.loading import Pair, load_pair, source_of
from amidkd.evaluation.plain_text import measure_text
from amidkd.evaluation.row_sets import MAIN, TEXT, RowSet, check_context, context_of, row_sets
from amidkd.evaluation.suite import ModelResult, evaluate_model
from amidkd.evaluation.tokens import assistant_of, farthest, token_lines
from amidkd.models import evaluating, pad_id_of
from amidkd.record import RunFolder, write_json_lines

__all__ = ["TeacherResults", "check_evaluation", "evaluate_run"]

_log = logging.getLogger("amidkd")


class TeacherResults:
    """What a teacher reached, kept in this process for its other students on the same rows, as in a sweep."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], ModelResult] = {}

    def of(self, config: RunConfig, rows: str, measure: Callable[[], ModelResult]) -> ModelResult:
        """The teacher's result, measured where it is not known.

        Args:
            config: The run's settings; those of teacher, data, evaluation and the student's model decide.
            rows: Name of the set of rows.
            measure: Measures it.
        """
        decide = config.model_dump(mode="json", include={"student", "teacher", "data", "evaluation"})
        key = (rows, json.dumps(decide, sort_keys=True))
        if key not in self._found:
            self._found[key] = measure()
        return self._found[key]


def check_evaluation(config: RunConfig, folder: RunFolder) -> None:
    """Check what an evaluation will need, short of the models: before a training that ends in one.

    Args:
        config: The run's settings.
        folder: The run folder.

    Raises:
        SettingError: As :func:`evaluate_run`.
    """
    Extras.ready(config, folder, row_sets(config))


def evaluate_run(
    config: RunConfig,
    folder: RunFolder,
    *,
    student: str | Path | None = None,
    teacher_results: TeacherResults | None = None,
) -> dict[str, Any]:
    """Measure a run's student and teacher on the same rows: held-out ones, plain text, the tasks of the suite.

    Writes ``results.evaluation`` of ``record.json``, ``samples.jsonl``, ``scores.npz`` and ``tokens.jsonl``.

    Args:
        config: The run's settings.
        folder: The run folder.
        student: A model folder to measure instead; default: the run's ``student/``, or before training the model
            that ``student.model`` names.
        teacher_results: What is known of its teacher; what is found is added.

    Returns:
        The entry written to the record: ``data``, ``settings``, ``student``, ``teacher``, ``difference`` (student −
        teacher, paired by prompt), ``missing``; with a suite also ``suite``, where each task has the same.

    Raises:
        SettingError: No held-out rows, rows without what a metric needs, no student yet, a teacher with another
            tokenizer.
    """
    source = source_of(config, folder, student)
    sets = row_sets(config)
    extras = Extras.ready(config, folder, sets)
    pair = load_pair(config, source)
    models = [model for _, model in pair.models.values()]
    check_context(sets, models)
    known = TeacherResults() if teacher_results is None else teacher_results
    found = {rows.name: _both(config, rows, pair, models, known) for rows in sets}
    found, entries = extras.measure(found, pair)
    main = found.pop(MAIN)
    entry = write_evaluation(
        config, folder, main.student, main.teacher, file=main.file, models=pair.models, beside=found, extras=entries
    )
    _write_tokens(config, folder, pair, main.student)
    return entry


def _both(config: RunConfig, rows: RowSet, pair: Pair, models: list[Any], known: TeacherResults) -> Measured:
    title = f" ({rows.name})" if rows.name else ""
    _log.info("Evaluating %s on %d rows of %s%s", pair.source, len(rows.rows), Path(rows.file).name, title)
    memory_mb = config.kernels.memory_mb or 128.0
    encoder = Encoder(pair.tokenizer, rows.data)

    def measured(model: Any, side: str) -> ModelResult:
        if rows.name == TEXT:
            context = context_of(models) or rows.data.max_length
            return measure_text(
                model,
                tokenizer=pair.tokenizer,
                rows=rows.rows,
                max_length=min(rows.data.max_length, context),
                batch_size=config.evaluation.batch_size,
                memory_mb=memory_mb,
                name=side,
            )
        return evaluate_model(
            model,
            tokenizer=pair.tokenizer,
            rows=rows.rows,
            encoder=encoder,
            config=rows.evaluation,
            max_new_tokens=rows.max_new_tokens,
            teacher=pair.teacher,
            memory_mb=memory_mb,
            name=f"{side}{title}",
        )

    student, teacher = measured(pair.student, "student"), pair.teacher
    if teacher is None:
        return Measured(rows.file, student, None)
    reference = known.of(config, rows.name, lambda: measured(teacher.model, "teacher"))
    return Measured(rows.file, student, reference)


def _write_tokens(config: RunConfig, folder: RunFolder, pair: Pair, result: ModelResult) -> None:
    """``tokens.jsonl``, or none where there is no teacher, no labelled row, or none is asked for."""
    kl = result.scores.get("kl_teacher_student")
    if pair.teacher is None or kl is None or not config.evaluation.token_rows:
        folder.tokens_file.unlink(missing_ok=True)
        return
    with evaluating(pair.student):
        lines = token_lines(
            farthest(kl, config.evaluation.token_rows),
            result.held_out,
            student=signal_of(pair.student),
            teacher=pair.teacher.signal,
            assistant=assistant_of(config.objective),
            tokenizer=pair.tokenizer,
            pad_id=pad_id_of(pair.tokenizer),
            vocab_size=pair.teacher.vocab_size,
            batch_size=config.evaluation.batch_size,
            device=pair.device,
            memory_mb=config.kernels.memory_mb or 128.0,
        )
    write_json_lines(folder.tokens_file, lines)
