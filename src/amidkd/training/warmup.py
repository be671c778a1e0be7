"""The warm-up of Warmup-Distill: the student's drafts, the teacher's corrections, and what is learnt from the two."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from warnings import warn

from amidkd.config import GenerationConfig, RunConfig, WarmupPolicy
from amidkd.data import Row
from amidkd.errors import SettingError, SettingWarning
from amidkd.generation import Generator, make_generator
from amidkd.models import eos_ids_of, pad_id_of
from amidkd.models.facts import text_config
from amidkd.policies.texts import Answer, TextSettings, answer_examples, read_answers, write_answers
from amidkd.policies.texts.journal import Journal
from amidkd.policies.warmup import CorrectingWriter, Correction, Likelihood
from amidkd.record import RunFolder
from amidkd.teachers import LiveTeacher
from amidkd.teachers.live import hash_weights
from amidkd.training.answering import Answering
from amidkd.training.hooks import Counter
from amidkd.training.lessons import Lessons
from amidkd.training.preference import Pair, require_trl

__all__ = ["Corrected", "check_warmup", "correct"]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class Corrected:
    """The student's drafts and what became of them.

    Args:
        lessons: The corrected text, as what the main stage goes through.
        pairs: The corrected text beside the draft, where the two differ.
        counts: What the record says of it.
    """

    lessons: Lessons
    pairs: list[Pair]
    counts: dict[str, Any]


def check_warmup(config: RunConfig) -> None:
    """Refuse a warm-up that cannot be run, before anything is loaded.

    Args:
        config: The run.

    Raises:
        SettingError: No teacher; what DPO needs is not there, or does not go with it.
    """
    policy = config.policy
    if not isinstance(policy, WarmupPolicy):
        return
    if config.teacher is None:
        raise SettingError("policy.kind: warmup needs a `teacher` section: who corrects the student?")
    if policy.loss == "dpo":
        require_trl()
        if config.data.corpus is not None:
            raise SettingError("policy.loss: dpo has no room for data.corpus; remove it, or use cross_entropy")


def correct(
    rows: Sequence[Row], lessons: Lessons, answering: Answering, *, student: Any, folder: RunFolder
) -> Corrected:
    """Have the student answer the prompts and the teacher correct it, in ``drafts/`` and ``corrected/``.

    Text that is there already is left as it is; a killed call is gone on with. Every process calls it.

    Args:
        rows: All rows of the run.
        lessons: The prompts.
        answering: Teacher, tokenizer and processes.
        student: The model as it is before the warm-up.
        folder: The run folder.

    Raises:
        SettingError: A folder that other settings made; nothing to prefer, with DPO.
        GenerationError: An engine is gone; what was saved stays.
    """
    began = time.perf_counter()
    # The trainer would move it there later.
    student.to(answering.device)
    asked = [row for row in rows if row.index in lessons.prompts]
    drafts = _Writing(answering, student, folder).run(asked)
    texts = read_answers(folder.corrected)
    done = _read_corrections(folder.corrected, answering.world)
    counts = {**_counts(texts, done), "seconds": time.perf_counter() - began}
    pairs = _pairs(drafts, texts)
    _say(answering, counts, len(pairs))
    examples = answer_examples(texts, answering.encoder)
    return Corrected(replace(lessons, examples=examples), pairs, counts)


@dataclass(frozen=True)
class _Writing:
    """Two folders of text: what the student says, and what the teacher makes of it."""

    answering: Answering
    student: Any
    folder: RunFolder

    @property
    def policy(self) -> WarmupPolicy:
        policy = self.answering.config.policy
        assert isinstance(policy, WarmupPolicy)
        return policy

    @property
    def teacher(self) -> LiveTeacher:
        teacher = self.answering.teacher
        assert teacher is not None
        return teacher()

    def run(self, rows: Sequence[Row]) -> list[Answer]:
        """Write both; gives the drafts."""
        settings = self._settings()
        self._write(rows, settings, lambda: self._engine(self.student), self.folder.drafts, "the student's drafts")
        drafts = read_answers(self.folder.drafts)
        corrected = replace(settings, origin="teacher", writer=self._corrector(settings.writer))
        by_stream = {draft.row: draft.completion_tokens for draft in drafts}
        self._write(
            rows, corrected, lambda: self._correcting(by_stream), self.folder.corrected, "the teacher's corrections"
        )
        return drafts

    def _write(self, rows: Sequence[Row], settings: TextSettings, generator: Any, path: Path, what: str) -> None:
        first, world = self.answering.rank == 0, self.answering.world
        if first:
            _log.info("%s to %d prompts go to %s, once", what.capitalize(), len(rows), path)
        with Counter(-(-len(rows) // world), name=what) if first else nullcontext() as counter:
            write_answers(
                rows,
                settings=settings,
                generator=generator,
                folder=path,
                rank=self.answering.rank,
                world=world,
                progress=counter,
            )

    def _settings(self) -> TextSettings:
        answering = self.answering
        sampling, most = self.policy.generation, answering.config.data.max_length
        contexts = [
            getattr(text_config(model), "max_position_embeddings", None) for model in (self.student, self.teacher.model)
        ]
        return TextSettings(
            writer=hash_weights(self.student),
            origin="student",
            name=str(self.folder.path),
            tokenizer=answering.tokenizer,
            encoder=answering.encoder,
            config=GenerationConfig(**sampling.model_dump(exclude={"engine"})),
            eos_ids=self._endings(),
            vocab_size=self.teacher.vocab_size,
            context=min([most, *(context for context in contexts if context is not None)]),
        )

    def _corrector(self, drafts: str) -> str:
        """What identifies the corrections: both models and what is rejected."""
        policy = self.policy
        parts = (drafts, self.teacher.fingerprint(), policy.reject_threshold, policy.rounds)
        return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()

    def _endings(self) -> tuple[int, ...]:
        tokenizer = self.answering.tokenizer
        return tuple(sorted({*eos_ids_of(tokenizer, self.student), *eos_ids_of(tokenizer, self.teacher.model)}))

    def _engine(self, model: Any) -> Generator:
        answering, sampling = self.answering, self.policy.generation
        if model is not self.student:
            # Another server than the student's, where servers write.
            sampling = sampling.model_copy(update={"engine": answering.config.data.generation.engine})
        return make_generator(
            sampling,
            model=model,
            tokenizer=answering.tokenizer,
            eos_ids=self._endings(),
            pad_id=pad_id_of(answering.tokenizer),
            vocab_size=self.teacher.vocab_size,
            run_folder=self.folder.path,
            first=answering.rank == 0,
            rank=answering.rank,
            world=answering.world,
        )

    def _correcting(self, drafts: Mapping[int, Sequence[int]]) -> Generator:
        answering, policy = self.answering, self.policy
        journal = Journal(_corrections_file(self.folder.corrected, answering.rank))
        journal.read()

        def note(done: Mapping[int, Correction]) -> None:
            journal.append({(row, 0): [one.position, one.rewrites, one.tokens] for row, one in done.items()})

        return CorrectingWriter(
            policy,
            drafts=drafts,
            student=self._engine(self.student),
            teacher=self._engine(self.teacher.model),
            likelihood=Likelihood(
                self.teacher,
                self.teacher.device,
                pad_id_of(answering.tokenizer),
                policy.generation.batch_size,
                answering.config.kernels,
            ),
            eos_ids=self._endings(),
            note=note,
        )


def _corrections_file(folder: Path, rank: int) -> Path:
    return folder / f".corrections-{rank}.jsonl"


def _read_corrections(folder: Path, world: int) -> dict[int, Correction]:
    """What was done to each row; a batch that a kill had made again says the same twice."""
    found: dict[int, Correction] = {}
    for rank in range(world):
        entries = Journal(_corrections_file(folder, rank)).read()
        found |= {row: Correction(*values) for (row, _), values in entries.items()}
    return found


def _counts(texts: Sequence[Answer], done: Mapping[int, Correction]) -> dict[str, Any]:
    corrected = [done[text.row] for text in texts if text.row in done and done[text.row].rewrites > 0]
    return {
        "prompts": len(texts),
        "rejected": len(corrected),
        "mean_position": sum(one.position for one in corrected) / len(corrected) if corrected else None,
        "rewrites": sum(one.rewrites for one in corrected),
        "most_rounds": max((one.rewrites for one in corrected), default=0),
        "tokens_in_all": sum(text.length for text in texts),
        "tokens_rewritten": sum(one.tokens for one in corrected),
    }


def _pairs(drafts: Sequence[Answer], texts: Sequence[Answer]) -> list[Pair]:
    by_row = {draft.row: draft for draft in drafts}
    return [
        Pair(
            prompt=text.prompt_tokens,
            chosen=text.completion_tokens,
            rejected=by_row[text.row].completion_tokens,
            texts=(text.prompt, text.completion, by_row[text.row].completion),
        )
        for text in texts
        if text.completion_tokens != by_row[text.row].completion_tokens
    ]


def _say(answering: Answering, counts: Mapping[str, Any], pairs: int) -> None:
    """Tell what was corrected; and where it teaches nothing."""
    policy, first = answering.config.policy, answering.rank == 0
    assert isinstance(policy, WarmupPolicy)
    if first:
        _log.info(
            "Corrected %d of %d texts: the teacher wrote %d of %d tokens",
            *(counts["rejected"], counts["prompts"], counts["tokens_rewritten"], counts["tokens_in_all"]),
        )
    nothing = (
        f"policy.reject_threshold: no token of the student's {counts['prompts']} texts has less than "
        f"{policy.reject_threshold} from the teacher, so nothing was corrected; raise it"
    )
    if policy.loss == "dpo" and not pairs:
        raise SettingError(f"{nothing}: with policy.loss: dpo there is nothing to prefer")
    if not counts["rejected"] and first:
        warn(f"{nothing}. Training goes on with the student's own text", SettingWarning, stacklevel=3)
    if policy.loss == "dpo" and first and pairs < counts["prompts"]:
        _log.info("DPO leaves out %d texts of which no token was rejected", counts["prompts"] - pairs)
