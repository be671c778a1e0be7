"""Every metric of one model on held-out rows, the teacher beside it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from amidkd.config import EvaluationConfig
from amidkd.data import Encoder, Row
from amidkd.evaluation.answers import NEEDS_REFERENCES, Answers, Speaker
from amidkd.evaluation.bootstrap import Bootstrap
from amidkd.evaluation.forced import Signal, signal_of
from amidkd.evaluation.held_out import HeldOut, hold_out
from amidkd.evaluation.measuring import Evaluator, measure
from amidkd.evaluation.statistics import Estimate, Scores, estimate, exponential, stack
from amidkd.evaluation.text import number_of
from amidkd.models import evaluating, pad_id_of, vocabulary_size

__all__ = ["ModelResult", "estimates_of", "evaluate_model", "stack_results"]


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
    """Averages of scores by metric, and each perplexity as the exponential of its NLL.

    Args:
        scores: Scores by metric.
        bootstrap: How confidence intervals are made; default: none are.
    """
    found = bootstrap.estimates(scores) if bootstrap else {name: estimate(entry) for name, entry in scores.items()}
    for nll, perplexity in (("nll", "perplexity"), ("text_nll", "text_perplexity")):
        if nll in found:
            found[perplexity] = exponential(found[nll])
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
    missing = _missing(held_out, config, teacher is not None)
    device = next(model.parameters()).device
    student = signal_of(model)
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
        no_repeat_ngram_size=config.no_repeat_ngram_size,
    )
    draws = 1 + len(config.sampling_seeds) * (1 if teacher is None else 2)
    passes = sum(text is not None for text in held_out.texts) + draws * len(held_out.asked)
    with evaluating(model), tqdm(total=passes, desc=f"Evaluating the {name}", unit="row", disable=None) as bar:
        evaluator = Evaluator(held_out, config, speaker, student, other, pad_id_of(tokenizer), device, memory_mb, bar)
        scores, greedy, sampled = measure(evaluator)
    return ModelResult(held_out, scores, greedy, sampled, tuple(missing), time.perf_counter() - started)


def _missing(held_out: HeldOut, config: EvaluationConfig, has_teacher: bool) -> list[str]:
    """What these rows and settings do not allow, and what would."""
    missing = []
    if not has_teacher:
        missing.append("distance from a teacher: there is none here to measure against")
    if not any(text is not None for text in held_out.texts):
        what = "NLL, perplexity and calibration" + (", and distances from the teacher on real text" * has_teacher)
        missing.append(f"{what}: no row has a `completion`")
    wanted = [name for metric, name in NEEDS_REFERENCES.items() if metric in config.metrics]
    if not held_out.asked:
        missing.append("answers: the rows are plain text, without prompts")
        return missing
    if wanted and not any(held_out.references):
        missing.append(f"{', '.join(wanted)}: no row has a `completion` or `references`")
    elif "numeric_match" in config.metrics and not any(
        number_of(right) is not None for rights in held_out.references for right in rights
    ):
        missing.append("numeric match: no reference has a number")
    if "self_bleu" in config.metrics and len(config.sampling_seeds) < 2:
        missing.append("self-BLEU: it needs two sampling_seeds or more")
    return missing
