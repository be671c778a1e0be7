"""What a model answers, and how good its answers are as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amidkd.config.evaluation import AnswerMetric
from amidkd.evaluation.formulas import BLEU_ORDERS, CHRF_ORDERS, Array, Formula
from amidkd.evaluation.overlap import bleu_statistics, chrf_statistics, distinct, self_bleu
from amidkd.evaluation.statistics import Scores
from amidkd.evaluation.text import character_errors, exact_match, numeric_match, rouge_l, symbol_errors
from amidkd.models import eos_ids_of, generate, pad_id_of

__all__ = ["NEEDS_REFERENCES", "Answers", "Speaker", "answer_scores"]


@dataclass(frozen=True)
class Answers:
    """One answer to each prompt.

    Args:
        tokens: Token ids, the end token included where it came.
        texts: The answers as text, without special tokens.
        lengths: Tokens without the end token.
    """

    tokens: list[list[int]]
    texts: list[str]
    lengths: list[int]


@dataclass(frozen=True)
class Speaker:
    """A model with all that its answers depend on but temperature and seed.

    Args:
        model: A causal model.
        tokenizer: Its tokenizer.
        vocab_size: Ids from here on never come.
        max_new_tokens: Longest answer, end token included.
        batch_size: Prompts in a forward pass.
        to_text: An answer's token ids as text, without its template and special tokens.
        no_repeat_ngram_size: No run of so many tokens comes twice in prompt and answer; 0: no such rule.
    """

    model: Any
    tokenizer: Any
    vocab_size: int
    max_new_tokens: int
    batch_size: int
    to_text: Callable[[Sequence[int]], str]
    no_repeat_ngram_size: int = 0

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> Answers:
        """Answer prompts.

        Args:
            prompts: Token ids of each.
            temperature: 0 is greedy.
            seed: Seed of the sampling.
            progress: Called with the prompts answered and the tokens made, batch by batch.
        """
        ends = eos_ids_of(self.tokenizer, self.model)
        tokens = generate(
            self.model,
            prompts,
            eos_ids=ends,
            pad_id=pad_id_of(self.tokenizer),
            max_new_tokens=self.max_new_tokens,
            temperature=temperature,
            batch_size=self.batch_size,
            seed=seed,
            vocab_size=self.vocab_size,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            progress=progress,
        )
        bodies = [answer[:-1] if answer and answer[-1] in ends else answer for answer in tokens]
        return Answers(tokens, [self.to_text(body) for body in bodies], [len(body) for body in bodies])


NEEDS_REFERENCES: dict[AnswerMetric, str] = {
    "exact_match": "exact match",
    "numeric_match": "numeric match",
    "rouge_l": "ROUGE-L",
    "phoneme_error_rate": "phoneme error rate",
    "character_error_rate": "character error rate",
    "bleu": "BLEU",
    "chrf": "chrF",
}
"""Metrics that hold an answer against right ones, and what people call them."""

_RATIOS: dict[AnswerMetric, Callable[[str, Sequence[str]], tuple[float, float]]] = {
    "exact_match": lambda text, right: (exact_match(text, right), 1.0),
    "numeric_match": lambda text, right: _of_known(numeric_match(text, right)),
    "rouge_l": lambda text, right: (rouge_l(text, right), 1.0),
    "phoneme_error_rate": symbol_errors,
    "character_error_rate": character_errors,
}
_CORPUS: dict[AnswerMetric, tuple[Formula, Callable[[str, Sequence[str]], Array], int]] = {
    "bleu": ("bleu", bleu_statistics, 2 + 2 * BLEU_ORDERS),
    "chrf": ("chrf", chrf_statistics, 3 * CHRF_ORDERS),
}
_AXES = ("sampling seeds", "prompts")


def _of_known(score: float | None) -> tuple[float, float]:
    return (0.0, 0.0) if score is None else (score, 1.0)


def answer_scores(
    draws: Sequence[Answers], references: Sequence[Sequence[str]], suffix: str, metrics: Sequence[AnswerMetric]
) -> dict[str, Scores]:
    """Scores of every answer as text, and its length.

    Args:
        draws: Answers to the same prompts, one set for each sampling seed, or a single greedy one.
        references: Right answers to each prompt; a prompt without any has no part in what needs them.
        suffix: ``"greedy"`` or ``"sampled"``: the end of the metrics' names.
        metrics: Which metrics. How varied answers are is said of sampled ones alone.
    """
    found: dict[str, Scores] = {}
    known = [bool(right) for right in references]
    for metric in metrics if any(known) else ():
        if metric in _RATIOS:
            pairs = np.array(_each(draws, references, _RATIOS[metric], (0.0, 0.0)), dtype=float)
            scores = Scores(pairs[..., 0], pairs[..., 1], _AXES)
        elif metric in _CORPUS:
            formula, statistics, width = _CORPUS[metric]
            entries = np.array(_each(draws, references, statistics, np.zeros(width)))
            scores = Scores(entries, np.array([known] * len(draws), dtype=float), _AXES, formula)
        else:
            continue
        if scores.counts.any():
            found[f"{metric}_{suffix}"] = scores
    if suffix == "sampled":
        found |= _variety(draws, metrics)
    lengths = np.array([draw.lengths for draw in draws], dtype=float)
    return {**found, f"length_{suffix}": Scores(lengths, np.ones_like(lengths), _AXES)}


def _each(
    draws: Sequence[Answers],
    references: Sequence[Sequence[str]],
    score: Callable[[str, Sequence[str]], Any],
    nothing: Any,
) -> list[list[Any]]:
    """A score of every answer [seeds, prompts, ...]; ``nothing`` where no reference is known."""
    return [
        [score(text, right) if right else nothing for text, right in zip(draw.texts, references, strict=True)]
        for draw in draws
    ]


def _variety(draws: Sequence[Answers], metrics: Sequence[AnswerMetric]) -> dict[str, Scores]:
    """How varied the answers to each prompt are, over all seeds together."""
    together = list(zip(*(draw.texts for draw in draws), strict=True))
    found: dict[str, Scores] = {}
    if "distinct_n" in metrics:
        for order in (1, 2):
            pairs = np.array([distinct(texts, order) for texts in together], dtype=float)
            if pairs[:, 1].any():
                found[f"distinct_{order}_sampled"] = Scores(pairs[:, 0], pairs[:, 1])
    if "self_bleu" in metrics and len(draws) > 1:
        alike = np.array([self_bleu(texts) for texts in together])
        found["self_bleu_sampled"] = Scores(alike, np.ones_like(alike))
    return found
