"""What an evaluation measures beside rows and answers: speed, drafts, code, a judge, tasks of the harness.

Whatever can be refused is refused by :meth:`Extras.ready`, before a model is loaded.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from warnings import warn

from tqdm import tqdm

from amidkd.config import EvaluationConfig, JudgeConfig, RunConfig
from amidkd.data import Row
from amidkd.errors import SettingError, SettingWarning
from amidkd.evaluation.code import check_tests, program_lines, run_answers
from amidkd.evaluation.entry import Measured
from amidkd.evaluation.held_out import question
from amidkd.evaluation.judge import Comparison, Judge, judge_pairs
from amidkd.evaluation.lm_eval import Harness
from amidkd.evaluation.loading import Pair
from amidkd.evaluation.row_sets import MAIN, TEXT, RowSet
from amidkd.evaluation.sandbox import run_program
from amidkd.evaluation.speculative import draft
from amidkd.evaluation.speed import measure_speed, sizes
from amidkd.evaluation.statistics import Scores
from amidkd.evaluation.suite import ModelResult
from amidkd.models import eos_ids_of, pad_id_of, vocabulary_size
from amidkd.record import RunFolder, write_json_lines

__all__ = ["CODE_FILE", "JUDGE_FILE", "Extras"]

_log = logging.getLogger("amidkd")

CODE_FILE = "code.jsonl"
"""In a run folder: each answer that was run as code, and how it ended."""
JUDGE_FILE = "judge.jsonl"
"""In a run folder: each verdict, with the judge's whole reply."""


@dataclass(frozen=True)
class Extras:
    """What the run file asks for, ready to be measured.

    Args:
        config: The run file's ``evaluation``.
        folder: The run folder: transcripts go there.
        max_new_tokens: Longest answer.
        judge: The judge, where there is one.
        harness: The harness, where tasks of it are asked for.
        guards: What the sandbox holds here, where code is run.
    """

    config: EvaluationConfig
    folder: RunFolder
    max_new_tokens: int
    judge: Judge | None
    harness: Harness | None
    guards: Mapping[str, Any]

    @staticmethod
    def ready(config: RunConfig, folder: RunFolder, sets: Sequence[RowSet]) -> "Extras":
        """Check all that is asked for.

        Args:
            config: The run's settings.
            folder: The run folder.
            sets: What is measured on, the held-out rows first.

        Raises:
            SettingError: Rows without tests, a judge that does not answer, a task that is not there, no teacher to
                compare with.
        """
        chosen = config.evaluation
        _check(config, sets)
        harness = None if chosen.lm_eval is None else Harness.ready(chosen.lm_eval)
        judge = None
        if chosen.judge is not None:
            judge = Judge(chosen.judge)
            judge.check()
        guards = {} if chosen.code is None else _guards()
        return Extras(chosen, folder, sets[0].max_new_tokens, judge, harness, guards)

    def measure(self, found: Mapping[str, Measured], pair: Pair) -> tuple[dict[str, Measured], dict[str, Any]]:
        """Measure them.

        Args:
            found: Results by set of rows.
            pair: The models.

        Returns:
            The results with the scores and gaps that the extras added; further entries of ``results.evaluation``:
            ``speed``, ``speculative``, ``code``, ``judge``, ``lm_eval``.
        """
        work = _Work(self, dict(found), pair, {})
        for part in (work.speed, work.speculative, work.code, work.verdicts, work.tasks):
            part()
        return work.found, work.entries


def _check(config: RunConfig, sets: Sequence[RowSet]) -> None:
    chosen, rows = config.evaluation, sets[0].rows
    if chosen.code is not None:
        check_tests(rows, chosen.code)
    if chosen.speculative is not None:
        _need_prompts("speculative", rows)
        if config.teacher is None:
            raise SettingError("evaluation.speculative: there is no teacher to draft for; name one in `teacher`")
    if chosen.judge is None:
        return
    everything = [row for each in sets for row in each.rows]
    _need_prompts("judge", everything)
    if chosen.judge.against == "teacher" and config.teacher is None:
        raise SettingError("evaluation.judge.against: teacher: there is no teacher; name one, or judge by reference")
    if chosen.judge.against == "reference" and not any(row.references or row.answer for row in everything):
        raise SettingError(
            "evaluation.judge.against: reference: no row has a `completion` or `references`; "
            "hold the student against its teacher (teacher)"
        )


def _need_prompts(section: str, rows: Sequence[Row]) -> None:
    if all(row.text is not None for row in rows):
        raise SettingError(f"evaluation.{section}: the rows are plain text; it needs rows with a prompt")


def _guards() -> Mapping[str, Any]:
    """What the sandbox holds here; warns of the rest."""
    guards = run_program("").guards
    doors = {
        "the network is open": guards.get("network") == "none",
        "files that this user can reach are in reach": guards.get("files"),
        "processes are not limited": guards.get("processes"),
    }
    still_open = ", ".join(what for what, shut in doors.items() if not shut)
    weaker = f" Here it is weaker than it can be: {still_open}." if still_open else ""
    warn(
        f"evaluation.code runs code that a model wrote, in a process with limits, which is no jail.{weaker} "
        "Where answers may be hostile, run the evaluation in a container.",
        SettingWarning,
        stacklevel=4,
    )
    return guards


@dataclass
class _Work:
    """The measuring under way, and what has been found."""

    extras: Extras
    found: dict[str, Measured]
    pair: Pair
    entries: dict[str, Any]

    @property
    def _vocabulary(self) -> int:
        teacher = self.pair.teacher
        return vocabulary_size(self.pair.tokenizer) if teacher is None else teacher.vocab_size

    def _note(
        self, name: str, scores: Mapping[str, Scores] | None = None, *, side: str = "student", gap: str | None = None
    ) -> None:
        """Put scores of a side, and what is missing, into the results on one set of rows."""
        held = self.found[name]
        if scores is not None:
            result: ModelResult = getattr(held, side)
            changed = replace(result, scores={**result.scores, **scores})
            held = replace(held, student=changed) if side == "student" else replace(held, teacher=changed)
        if gap is not None:
            held = replace(held, student=replace(held.student, missing=(*held.student.missing, gap)))
        self.found[name] = held

    def speed(self) -> None:
        """Tokens a second, and what each model takes."""
        models = {side: model for side, (_, model) in self.pair.models.items()}
        prompts = _prompts(self.found[MAIN].student)
        if not prompts:
            self.entries["speed"] = {side: sizes(model) for side, model in models.items()}
            return
        self.entries["speed"] = measure_speed(
            models,
            prompts,
            pad_id=pad_id_of(self.pair.tokenizer),
            vocab_size=self._vocabulary,
            max_new_tokens=self.extras.max_new_tokens,
        )

    def speculative(self) -> None:
        """The student as a draft."""
        settings, teacher = self.extras.config.speculative, self.pair.teacher
        if settings is None:
            return
        if teacher is None:
            self._note(MAIN, gap="the student as a draft: there is no teacher's model here to draft for")
            return
        asked = _prompts(self.found[MAIN].student)
        prompts = asked[: settings.rows]
        try:
            with _bar("Drafting", len(prompts)) as progress:
                drafts = draft(
                    self.pair.student,
                    teacher.model,
                    prompts,
                    vocab_size=self._vocabulary,
                    eos_ids=eos_ids_of(self.pair.tokenizer, teacher.model),
                    max_new_tokens=settings.max_new_tokens or self.extras.max_new_tokens,
                    draft_tokens=settings.draft_tokens,
                    temperature=self.extras.config.temperature,
                    seed=settings.seed,
                    progress=progress,
                )
        except (SettingError, ValueError, NotImplementedError) as error:
            # Assisted generation is transformers', and does not know every architecture.
            self._note(MAIN, gap=f"the student as a draft: {error}")
            return
        self._note(MAIN, drafts.scores(len(asked)))
        self.entries["speculative"] = drafts.to_json() | {"temperature": self.extras.config.temperature}

    def code(self) -> None:
        """pass@k of both."""
        config = self.extras.config
        if config.code is None:
            return
        lines: list[Mapping[str, Any]] = []
        entry: dict[str, Any] = {"guards": dict(self.extras.guards)}
        for side in self.pair.models:
            result: ModelResult = getattr(self.found[MAIN], side)
            rows = _rows(result)
            with _bar(f"Running the {side}'s code", len(rows) * len(result.sampled)) as progress:
                ended = run_answers(rows, result.sampled, config.code, progress=progress)
            self._note(MAIN, ended.scores, side=side)
            entry[side] = ended.to_json()
            lines += program_lines(rows, side, config.sampling_seeds, result.sampled, ended)
        write_json_lines(self.extras.folder.path / CODE_FILE, lines)
        self.entries["code"] = entry

    def verdicts(self) -> None:
        """Wins before the judge: on the held-out rows, and on each task of the suite."""
        settings, judge = self.extras.config.judge, self.extras.judge
        if settings is None or judge is None:
            return
        if settings.against == "teacher" and self.pair.teacher is None:
            self._note(MAIN, gap="the judge: there is no teacher's answer to hold the student's against")
            return
        entry: dict[str, Any] = {"model": settings.model, "against": settings.against, "answers": settings.answers}
        for name in [name for name in self.found if name != TEXT]:
            counts = self._verdicts_on(name, judge, settings)
            if counts is not None and name == MAIN:
                entry |= counts
            elif counts is not None:
                entry.setdefault("suite", {})[name] = counts
        self.entries["judge"] = entry

    def _verdicts_on(self, name: str, judge: Judge, settings: JudgeConfig) -> dict[str, Any] | None:
        pairs = _comparisons(self.found[name], settings)
        if not any(pairs):
            return None
        with _bar(f"Judging{f' ({name})' if name else ''}", 2 * sum(pair is not None for pair in pairs)) as progress:
            judged = judge_pairs(judge, pairs, settings, self.extras.folder.path / JUDGE_FILE, progress=progress)
        gap = None
        if judged.failure is not None:
            gap = (
                f"the judge: it stopped answering ({judged.failure}); run the evaluation again: verdicts in "
                f"{JUDGE_FILE} are not asked for again"
            )
        elif judged.unread:
            gap = f"the judge: {judged.unread} replies had no verdict, and their pairs are left out"
        self._note(name, judged.scores(), gap=gap)
        return judged.to_json()

    def tasks(self) -> None:
        """Tasks of the harness."""
        harness = self.extras.harness
        if harness is None:
            return
        _log.info("lm-eval: %s", ", ".join(harness.config.tasks))
        models = {"student": (self.pair.student, self.pair.tokenizer)}
        if self.pair.teacher is not None:
            models["teacher"] = (self.pair.teacher.model, self.pair.teacher.tokenizer)
        try:
            self.entries["lm_eval"] = harness.run(models, vocab_size=self._vocabulary)
        except Exception as error:
            # Code of a task's own: whatever it raises, the rest of the evaluation is not to be lost.
            self._note(MAIN, gap=f"lm-eval: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _rows(result: ModelResult) -> list[Row]:
    return [result.held_out.rows[place] for place in result.held_out.asked]


def _prompts(result: ModelResult) -> list[tuple[int, ...]]:
    return [result.held_out.prompts[place] or () for place in result.held_out.asked]


def _comparisons(found: Measured, settings: JudgeConfig) -> list[Comparison | None]:
    """What is put before the judge of each row with a prompt; None for a row that is not."""
    ours = _texts(found.student, settings.answers)
    theirs = () if found.teacher is None else _texts(found.teacher, settings.answers)
    pairs: list[Comparison | None] = []
    left = settings.rows
    for number, (place, row) in enumerate(zip(found.student.held_out.asked, _rows(found.student), strict=True)):
        known = found.student.held_out.references[place]
        if settings.against == "teacher":
            known = (theirs[number],)
        pair = Comparison(row.where, question(row), ours[number], known[0]) if known and left else None
        left -= pair is not None
        pairs.append(pair)
    return pairs


def _texts(result: ModelResult, which: str) -> Sequence[str]:
    answers = result.greedy if which == "greedy" else next(iter(result.sampled), None)
    return () if answers is None else answers.texts


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], Any]]:
    with tqdm(total=total, desc=title, disable=None) as bar:
        yield bar.update
