"""Weights searched: those with which the teachers' mixture gives held-out labels the most probability.

    minimise over the simplex   −(1/N) Σ_n log p̄_n(label_n),   p̄ ∝ (Σ_k w_k p_k^s)^{1/s}

by differential evolution (Storn and Price 1997), as in weighted ensembles of teaching assistants. Each teacher is asked
once. At α = −1 only the probability of the label is kept, [N] numbers a teacher. At another α the mixture's normaliser
needs the distributions: they are merged to the likeliest tokens of every teacher and a tail (exact for small
vocabularies). Where a teacher is truncated, all are brought to common outcomes, and a label that not all know counts as
the tail: every teacher is judged on the same events.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.kernels.heads import compute_dtype, head_logits
from amidkd.kernels.outcomes import teacher_log_probs
from amidkd.maths.mixture import log_mixture_of
from amidkd.signals import Signal, TopK
from amidkd.teachers.aligned import Aligned
from amidkd.teachers.base import Grouped, Teacher
from amidkd.teachers.ensemble.outcomes import common_outcomes, dense_at

if TYPE_CHECKING:
    from amidkd.data import Example

__all__ = ["minimise_on_simplex", "search_weights"]

_KEPT = 128
"""Likeliest tokens of each teacher that an α other than −1 looks at."""
_WHOLE = 1024
"""Vocabularies up to this size are looked at whole."""
_NUMBERS = 2**22
"""Numbers that are made at once."""


def search_weights(
    members: Sequence[Teacher],
    examples: Sequence["Example"],
    *,
    vocab_size: int,
    pad_id: int,
    batch_size: int,
    device: torch.device,
    alpha: float,
    iterations: int,
    seed: int,
) -> list[float]:
    """The weights of the likeliest mixture.

    Args:
        members: Teachers.
        examples: Rows with supervised tokens.
        vocab_size: Shared vocabulary V.
        pad_id: Token id of the padding.
        batch_size: Rows in a batch.
        device: Where the teachers' signals are looked at.
        alpha: α of the mixture.
        iterations: Most generations.
        seed: Of the search.

    Raises:
        SettingError: No supervised token, SciPy is missing, or no weights make the rows possible.
    """
    _scipy()
    spoken = _gather(
        members, examples, vocab_size=vocab_size, pad_id=pad_id, batch_size=batch_size, device=device, alpha=alpha
    )
    if not spoken or not spoken[0][1].numel():
        raise SettingError(
            "teacher.weights = search: no held-out row has a supervised token; give labelled rows in data.validation"
        )
    labels = torch.cat([label_n for _, label_n in spoken])
    stacked = [torch.cat([log_ps[k] for log_ps, _ in spoken]) for k in range(len(members))]

    def loss(weights: list[float]) -> float:
        return _nll(stacked, labels, weights, alpha)

    weights, value = minimise_on_simplex(loss, len(members), iterations=iterations, seed=seed)
    if value == float("inf"):
        raise SettingError(
            "teacher.weights = search: whatever the weights, some held-out label has probability 0; "
            "give the weights as numbers"
        )
    return weights


def minimise_on_simplex(
    loss: Callable[[list[float]], float], count: int, *, iterations: int, seed: int
) -> tuple[list[float], float]:
    """Weights of sum 1 with the least loss, by differential evolution; never worse than a corner or the centre.

    Args:
        loss: Of weights with the sum 1; may be +inf.
        count: How many weights.
        iterations: Most generations.
        seed: Of the search.

    Returns:
        The weights, and their loss.
    """
    import numpy

    draw = numpy.random.default_rng(seed)
    # A point on the simplex, drawn evenly, is a set of exponential numbers over their sum.
    drawn = draw.exponential(size=(max(5, 10 * count), count))
    first = numpy.concatenate([numpy.eye(count), numpy.ones((1, count)), drawn / drawn.max(1, keepdims=True)])

    def of_point(point: Any) -> float:
        total = float(point.sum())
        return loss((point / total).tolist()) if total > 0 else float("inf")

    found = _scipy().differential_evolution(
        of_point, [(0.0, 1.0)] * count, maxiter=iterations, init=first, tol=1e-6, polish=False, rng=draw
    )
    return (found.x / found.x.sum()).tolist(), float(found.fun)


def _scipy() -> Any:
    try:
        from scipy import optimize
    except ImportError as error:
        raise SettingError(
            "teacher.weights = search needs SciPy; install it with: pip install 'amidkd[ensemble]'"
        ) from error
    return optimize


def _gather(
    members: Sequence[Teacher],
    examples: Sequence["Example"],
    *,
    vocab_size: int,
    pad_id: int,
    batch_size: int,
    device: torch.device,
    alpha: float,
) -> list[tuple[list[Tensor], Tensor]]:
    """For each batch what every teacher says [n, J], and which of the J outcomes the label is [n], on the CPU."""
    from amidkd.data import collate

    found = []
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size], pad_id=pad_id)
        label_n = batch.labels_N()
        if not len(label_n):
            continue
        signals: list[Signal] = []
        for member in members:
            said = member.signal(batch.to(device))
            assert not isinstance(said, Grouped | Aligned)
            signals.append(said)
        log_ps, place_n = _spoken(common_outcomes(signals, vocab_size=vocab_size), label_n.to(device), vocab_size)
        if alpha == -1.0:
            log_ps, place_n = [log_p.gather(-1, place_n[:, None]) for log_p in log_ps], torch.zeros_like(place_n)
        found.append(([log_p.cpu() for log_p in log_ps], place_n.cpu()))
    return found


def _spoken(signals: Sequence[Signal], label_n: Tensor, vocab_size: int) -> tuple[list[Tensor], Tensor]:
    """Log-probabilities over common outcomes [n, J], and the place of the label's outcome [n]."""
    dtype = compute_dtype(list(signals))
    first = signals[0]
    if isinstance(first, TopK):
        ids = first.ids.to(label_n.device)
    else:
        ids = _likeliest(signals, label_n, vocab_size)
        signals = [dense_at(signal, ids, vocab_size=vocab_size, dtype=dtype) for signal in signals]  # type: ignore[arg-type]
    log_ps = [
        teacher_log_probs(
            signal, slice(None), vocab_size=vocab_size, temperature=1.0, dtype=dtype, device=label_n.device
        )
        for signal in signals
    ]
    is_label = ids == label_n[:, None]
    return log_ps, torch.where(is_label.any(-1), is_label.int().argmax(-1), ids.shape[1])


def _likeliest(signals: Sequence[Any], label_n: Tensor, vocab_size: int) -> Tensor:
    """Ids [n, K]: the whole vocabulary, or the label and each teacher's likeliest; V in place of what comes twice."""
    if vocab_size <= _WHOLE:
        return torch.arange(vocab_size, device=label_n.device).expand(len(label_n), -1)
    listed = [label_n[:, None], *(_top(signal, len(label_n), vocab_size).to(label_n.device) for signal in signals)]
    ids = torch.cat(listed, dim=-1).sort(-1).values
    again = torch.zeros_like(ids, dtype=torch.bool)
    again[:, 1:] = ids[:, 1:] == ids[:, :-1]
    return ids.masked_fill(again, vocab_size)


def _top(signal: Any, count: int, vocab_size: int) -> Tensor:
    step = max(1, _NUMBERS // vocab_size)
    pieces = [
        head_logits(signal, slice(start, start + step), vocab_size=vocab_size, dtype=torch.float32).topk(_KEPT).indices
        for start in range(0, count, step)
    ]
    return torch.cat(pieces)


def _nll(log_ps: Sequence[Tensor], label_n: Tensor, weights: list[float], alpha: float) -> float:
    """−mean log p̄(label), summed in float64."""
    if alpha == -1.0:
        shares = torch.tensor(weights, dtype=torch.float64).log()
        stacked = torch.cat([log_p.double() for log_p in log_ps], dim=-1) + shares
        return -float(stacked.logsumexp(-1).mean())
    total = 0.0
    step = max(1, _NUMBERS // log_ps[0].shape[1])
    for start in range(0, len(label_n), step):
        rows = slice(start, start + step)
        mixed = log_mixture_of([log_p[rows] for log_p in log_ps], weights=weights, alpha=alpha)
        total -= float(mixed.gather(-1, label_n[rows, None]).double().sum())
    return total / len(label_n)
