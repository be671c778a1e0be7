"""Every metric of one model on held-out rows, the teacher beside it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from amidkd.config import EvaluationConfig
from amidkd.data import Encoder, Example, Row, Sequences
from amidkd.errors import SettingError
from amidkd.evaluation.answers import Answers, Speaker, text_scores
from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.forced import RowSums, Signal, sums_of_rows
from amidkd.evaluation.statistics import Estimate, Scores, estimate, exponential, stack
from amidkd.models import Backbone, evaluating, pad_id_of, vocabulary_size
from amidkd.signals import Hidden, Logits

__all__ = ["HeldOut", "ModelResult", "estimates_of", "evaluate_model", "hold_out", "stack_results"]

_log = logging.getLogger("amidkd")


@dataclass(frozen=True)
class HeldOut:
    """Rows to evaluate on, as tokens.

    Args:
        rows: The rows, P of them.
        prompts: Token ids of each row's prompt; None for plain text.
        texts: Each row with its completion as tokens, the completion supervised; None where there is none.
        references: Right answers to each; empty where none is known.
        dropped: How many more rows were left out.
        truncated: How many texts are cut at ``data.max_length``, so that their likelihood is that of their beginning.
    """

    rows: list[Row]
    prompts: list[tuple[int, ...] | None]
    texts: list[Example | None]
    references: list[tuple[str, ...]]
    dropped: int = 0
    truncated: int = 0

    @property
    def asked(self) -> list[int]:
        """Places of the rows that have a prompt."""
        return [place for place, prompt in enumerate(self.prompts) if prompt is not None]


def hold_out(rows: Sequence[Row], encoder: Encoder) -> HeldOut:
    """Rows to evaluate on, as tokens; what ``data.long_prompts: drop`` leaves out is left out here too.

    Args:
        rows: Held-out rows.
        encoder: Rows to tokens, as in training.

    Raises:
        SettingError: No row is left, or one cannot be used.
    """
    # Rows may come from several files, each with its own count.
    rows = [replace(row, index=place) for place, row in enumerate(rows)]
    encoded = encoder.encode(rows)
    labelled = {example.row: example for example in encoded.examples}
    prompts = [None if row.text is not None else encoder.prompt_tokens(row) for row in rows]
    kept = [
        place
        for place, row in enumerate(rows)
        if prompts[place] is not None or (row.text is not None and place in labelled)
    ]
    if not kept:
        raise SettingError("no row is left to evaluate on: all prompts are over the limit (data.long_prompts: drop)")
    chosen = [rows[place] for place in kept]
    return HeldOut(
        chosen,
        [None if prompts[place] is None else tuple(prompts[place] or ()) for place in kept],
        [labelled.get(place) for place in kept],
        [_references(row) for row in chosen],
        dropped=len(rows) - len(kept),
        truncated=encoded.truncated,
    )


def _references(row: Row) -> tuple[str, ...]:
    answer = () if row.answer is None else (row.answer,)
    return tuple(dict.fromkeys((*answer, *row.references)))


@dataclass(frozen=True)
class ModelResult:
    """What an evaluation of one model found.

    Args:
        held_out: The rows.
        scores: Scores of every prompt by metric; the same rows in the same order for every model on one data set.
        greedy: Its greedy answers to the rows with a prompt, or None where no row has one.
        sampled: Its sampled answers, one set for each seed.
        missing: What could not be measured, and why.
        seconds: Time it took.
    """

    held_out: HeldOut
    scores: dict[str, Scores]
    greedy: Answers | None
    sampled: tuple[Answers, ...]
    missing: tuple[str, ...]
    seconds: float = field(compare=False, default=0.0)

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Every metric with its standard errors."""
        return estimates_of(self.scores)


def estimates_of(scores: Mapping[str, Scores], bootstrap: Bootstrap | None = None) -> dict[str, Estimate]:
    """Averages of scores by metric, and perplexity as the exponential of the NLL.

    Args:
        scores: Scores by metric.
        bootstrap: How confidence intervals are made; default: none are.
    """
    found = bootstrap.estimates(scores) if bootstrap else {name: estimate(entry) for name, entry in scores.items()}
    if "nll" in found:
        found["perplexity"] = exponential(found["nll"])
    return found


def stack_results(results: Sequence[ModelResult], axis: str = "training seeds") -> dict[str, Scores]:
    """Scores of several repetitions of one training as one, for :func:`estimates_of`.

    Args:
        results: Results on the same rows.
        axis: What was repeated.

    Raises:
        ValueError: None is given, or they were made on different rows.
    """
    names = set.intersection(*(set(result.scores) for result in results)) if results else set()
    if not names:
        raise ValueError("nothing to stack: the results have no metric in common")
    return {
        name: stack([result.scores[name] for result in results], axis) for name in results[0].scores if name in names
    }


@dataclass(frozen=True)
class _Evaluator:
    """One evaluation under way."""

    held_out: HeldOut
    config: EvaluationConfig
    speaker: Speaker
    student: Signal
    teacher: Signal | None
    pad_id: int
    device: torch.device
    memory_mb: float
    bar: Any

    def forced(self, examples: Sequence[Example | None]) -> RowSums:
        return sums_of_rows(
            examples,
            student=self.student,
            teacher=self.teacher,
            pad_id=self.pad_id,
            vocab_size=self.speaker.vocab_size,
            batch_size=self.config.batch_size,
            device=self.device,
            memory_mb=self.memory_mb,
            progress=self.bar.update,
        )

    def answers(self, *, temperature: float, seed: int) -> Answers:
        prompts = [self.held_out.prompts[place] for place in self.held_out.asked]
        return self.speaker.answer(
            [prompt for prompt in prompts if prompt is not None],
            temperature=temperature,
            seed=seed,
            progress=lambda rows, _tokens: self.bar.update(rows),
        )

    def along_samples(self, draws: Sequence[Answers]) -> dict[str, Scores]:
        """What the teacher says of what the student samples."""
        sums = [self.forced(self._said(draw)) for draw in draws]
        counts = np.stack([entry["tokens"] for entry in sums])
        names = {
            "teacher_nll_of_samples": "nll_teacher",
            "kl_student_teacher_on_samples": "kl_student_teacher",
            "acceptance_on_samples": "acceptance",
        }
        axes = ("sampling seeds", "prompts")
        return {name: Scores(np.stack([entry[key] for entry in sums]), counts, axes) for name, key in names.items()}

    def _said(self, draw: Answers) -> list[Example | None]:
        prompts = [self.held_out.prompts[place] or () for place in self.held_out.asked]
        return [
            Example((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer), row=place, origin="student")
            for place, prompt, answer in zip(self.held_out.asked, prompts, draw.tokens, strict=True)
        ]


_FORCED = ("nll", "kl_teacher_student", "kl_student_teacher", "top1_agreement", "acceptance")


def _measure(evaluator: _Evaluator) -> tuple[dict[str, Scores], Answers | None, tuple[Answers, ...]]:
    held_out, config = evaluator.held_out, evaluator.config
    scores: dict[str, Scores] = {}
    if any(text is not None for text in held_out.texts):
        sums = evaluator.forced(held_out.texts)
        scores.update({name: Scores(sums[name], sums["tokens"]) for name in _FORCED if name in sums})
    if not held_out.asked:
        return scores, None, ()
    references = [held_out.references[place] for place in held_out.asked]
    greedy = evaluator.answers(temperature=0.0, seed=0)
    draws = tuple(evaluator.answers(temperature=config.temperature, seed=seed) for seed in config.sampling_seeds)
    scores.update(text_scores([greedy], references, "greedy"))
    scores.update(text_scores(draws, references, "sampled"))
    if evaluator.teacher is not None:
        scores.update(evaluator.along_samples(draws))
    return scores, greedy, draws


def evaluate_model(
    model: Any,
    *,
    tokenizer: Any,
    rows: Sequence[Row],
    encoder: Encoder,
    config: EvaluationConfig,
    max_new_tokens: int,
    teacher: Any = None,
    memory_mb: float = 128.0,
    name: str = "model",
) -> ModelResult:
    """Measure a model on held-out rows: its likelihoods, its distance from a teacher, its answers.

    Args:
        model: A causal model, not wrapped for distribution. With ``teacher.model`` itself, the teacher is measured as
            its own student.
        tokenizer: Its tokenizer.
        rows: Held-out rows; prompts with completions or references give every metric, others what is possible.
        encoder: Rows to tokens, as in training.
        config: Which seeds, what temperature, how many rows in a batch.
        max_new_tokens: Longest answer, end token included.
        teacher: A :class:`~amidkd.teachers.LiveTeacher`, or None.
        memory_mb: Room for temporaries over the vocabulary, MiB.
        name: What progress bar and messages call the model.

    Returns:
        Scores of every row, answers, and what is missing.

    Raises:
        SettingError: The rows allow no metric at all.
    """
    started = time.perf_counter()
    held_out = hold_out(rows, encoder)
    missing = _missing(held_out, teacher is not None)
    device = next(model.parameters()).device
    student = _signal_of(model)
    other: Signal | None = None
    if teacher is not None:
        other = student if teacher.model is model else teacher.signal
    speaker = Speaker(
        model,
        tokenizer,
        vocab_size=vocabulary_size(tokenizer) if teacher is None else teacher.vocab_size,
        max_new_tokens=max_new_tokens,
        batch_size=config.batch_size,
        to_text=encoder.completion_text,
    )
    draws = 1 + len(config.sampling_seeds) * (1 if teacher is None else 2)
    passes = sum(text is not None for text in held_out.texts) + draws * len(held_out.asked)
    with evaluating(model), tqdm(total=passes, desc=f"Evaluating the {name}", unit="row", disable=None) as bar:
        evaluator = _Evaluator(held_out, config, speaker, student, other, pad_id_of(tokenizer), device, memory_mb, bar)
        scores, greedy, sampled = _measure(evaluator)
    return ModelResult(held_out, scores, greedy, sampled, tuple(missing), time.perf_counter() - started)


def _signal_of(model: Any) -> Signal:
    backbone = Backbone(model)

    @torch.no_grad()
    def signal(sequences: Sequences) -> Hidden | Logits:
        return backbone(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT())

    return signal


def _missing(held_out: HeldOut, has_teacher: bool) -> list[str]:
    """What these rows do not allow, and what would."""
    missing = []
    if not has_teacher:
        missing.append("distance from a teacher: there is none here to measure against")
    if not any(text is not None for text in held_out.texts):
        what = "NLL and perplexity" + (", and distances from the teacher on real text" if has_teacher else "")
        missing.append(f"{what}: no row has a `completion`")
    if not held_out.asked:
        missing.append("answers: the rows are plain text, without prompts")
    elif not any(held_out.references):
        missing.append("exact match and ROUGE-L: no row has a `completion` or `references`")
    return missing
