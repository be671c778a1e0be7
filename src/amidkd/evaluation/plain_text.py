"""How likely a model finds plain text: its perplexity."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from amidkd.data import Example, Row, corpus_windows
from amidkd.evaluation.forced import signal_of, sums_of_rows
from amidkd.evaluation.held_out import HeldOut
from amidkd.evaluation.statistics import Scores
from amidkd.evaluation.suite import ModelResult
from amidkd.models import evaluating, pad_id_of, vocabulary_size

__all__ = ["measure_text"]


def measure_text(
    model: Any,
    *,
    tokenizer: Any,
    rows: Sequence[Row],
    max_length: int,
    batch_size: int,
    memory_mb: float = 128.0,
    name: str = "model",
) -> ModelResult:
    """Negative log-likelihood of every token of some texts, each with its BOS (where there is one) and EOS.

    A text over ``max_length`` is cut into windows that overlap by one token: each token counts once, with what comes
    before it in its window as context.

    Args:
        model: A causal model, not wrapped for distribution.
        tokenizer: Its tokenizer.
        rows: Rows with ``text``, at least one of them not empty; an empty one has no part.
        max_length: Tokens of a window.
        batch_size: Windows in a batch.
        memory_mb: Room for temporaries over the vocabulary, MiB.
        name: What the progress bar calls the model.

    Returns:
        Scores ``text_nll`` of every text.
    """
    started = time.perf_counter()
    windows: list[Example] = []
    owners: list[int] = []
    for place, row in enumerate(rows):
        # An empty text is no window where the tokenizer has no BOS.
        own = corpus_windows([row], tokenizer, max_length=max_length) if row.text else []
        windows += own
        owners += [place] * len(own)
    with (
        evaluating(model),
        tqdm(total=len(windows), desc=f"Plain text, the {name}", unit="window", disable=None) as bar,
    ):
        sums = sums_of_rows(
            windows,
            student=signal_of(model),
            teacher=None,
            pad_id=pad_id_of(tokenizer),
            vocab_size=vocabulary_size(tokenizer),
            batch_size=batch_size,
            device=next(model.parameters()).device,
            memory_mb=memory_mb,
            progress=bar.update,
        )
    nll, tokens = (np.bincount(owners, sums[key], len(rows)).astype(np.float64) for key in ("nll", "tokens"))
    held_out = HeldOut(list(rows), [None] * len(rows), [None] * len(rows), [()] * len(rows))
    scores = {"text_nll": Scores(nll, tokens)}
    return ModelResult(held_out, scores, None, (), (), time.perf_counter() - started)
