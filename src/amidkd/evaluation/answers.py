"""What a model answers, and how good its answers are as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amidkd.evaluation.statistics import Array, Scores
from amidkd.evaluation.text import exact_match, rouge_l
from amidkd.models import eos_ids_of, generate, pad_id_of

__all__ = ["Answers", "Speaker", "text_scores"]


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
    """

    model: Any
    tokenizer: Any
    vocab_size: int
    max_new_tokens: int
    batch_size: int
    to_text: Callable[[Sequence[int]], str]

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
            progress=progress,
        )
        bodies = [answer[:-1] if answer and answer[-1] in ends else answer for answer in tokens]
        return Answers(tokens, [self.to_text(body) for body in bodies], [len(body) for body in bodies])


def text_scores(draws: Sequence[Answers], references: Sequence[Sequence[str]], suffix: str) -> dict[str, Scores]:
    """Exact match, ROUGE-L and length of every answer.

    Args:
        draws: Answers to the same prompts, one set for each sampling seed, or a single greedy one.
        references: Right answers to each prompt; a prompt without any counts for length alone.
        suffix: ``"greedy"`` or ``"sampled"``: the end of the metrics' names.
    """
    known = np.array([[float(bool(right)) for right in references]] * len(draws))

    def scored(score: Callable[[str, Sequence[str]], float]) -> Array:
        return np.array(
            [
                [score(text, right) if right else 0.0 for text, right in zip(draw.texts, references, strict=True)]
                for draw in draws
            ]
        )

    lengths = np.array([draw.lengths for draw in draws], dtype=float)
    found = {f"length_{suffix}": _scores(lengths, np.ones_like(lengths))}
    if known.any():
        found[f"exact_match_{suffix}"] = _scores(scored(exact_match), known)
        found[f"rouge_l_{suffix}"] = _scores(scored(rouge_l), known)
    return found


def _scores(sums: Array, counts: Array) -> Scores:
    return Scores(sums, counts, ("sampling seeds", "prompts"))
