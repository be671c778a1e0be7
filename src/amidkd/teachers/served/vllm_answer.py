"""What a vLLM server says of a prompt's tokens, checked: ``prompt_logprobs`` as the likeliest tokens and a tail.

Entry t of ``prompt_logprobs`` maps ids to what was known of token t before it came: the k likeliest, and token t itself
where it is none of them. Entry 0 is null. A log-probability of −∞ is sent as −9999.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amidkd.signals import TopK
from amidkd.teachers.served.protocol import ScoredRow

__all__ = ["Scores", "WrongAnswerError", "implied_tail", "joined", "read_choices", "read_scores"]

_NEVER = -9999.0
_ROUNDING = 1e-3
"""What a sum of probabilities may be off by: they were computed in float32, of logits in the model's own type."""
_RESOLUTION = 1e-6
"""What is left of 1 below this is no tail, but the rounding of the sum."""


class WrongAnswerError(Exception):
    """An answer that is whole but not what was asked for: other tokens, or no log-probabilities. Never learnt from."""


@dataclass(frozen=True, eq=False)
class Scores:
    """What is said at the asked places of one row.

    Args:
        ids: The K likeliest tokens [n, K], likeliest first.
        log_probs: Their log-probabilities [n, K], float64.
    """

    ids: Tensor
    log_probs: Tensor


def read_choices(value: Any, rows: Sequence[ScoredRow], *, model: str, k: int) -> list[Scores]:
    """The scores of all rows of a request, if all that came with them is as it must be.

    Args:
        value: The answer of ``/v1/completions``, as JSON.
        rows: What was sent, in order.
        model: Name of the model that was asked.
        k: How many tokens must be known at each place.

    Raises:
        WrongAnswerError: Anything is odd; the message says what.
    """
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise WrongAnswerError(f"the answer has no choices: {_short(value)}")
    if value.get("model") not in (None, model):
        raise WrongAnswerError(f"model {value['model']!r} answered, but {model!r} was asked")
    by_index = {choice.get("index"): choice for choice in choices}
    if len(choices) != len(rows) or set(by_index) != set(range(len(rows))):
        raise WrongAnswerError(f"{len(choices)} choices came for {len(rows)} prompts")
    return [read_scores(by_index[number], row, k=k) for number, row in enumerate(rows)]


def read_scores(choice: Mapping[str, Any], row: ScoredRow, *, k: int) -> Scores:
    """The scores of one row.

    There must be as many positions as tokens were sent, each with the token that was sent there and k or more others,
    also where nobody asks; at the asked places, log-probabilities whose sum is no more than 1.

    Args:
        choice: What came.
        row: What was sent.
        k: How many tokens must be known at each place.

    Raises:
        WrongAnswerError: Anything is odd; the message says what.
    """
    sent = row.tokens_T.tolist()
    _check_count(choice, sent)
    entries = choice["prompt_logprobs"]
    for place, (token, entry) in enumerate(zip(sent, entries, strict=True)):
        if place > 0:
            _check_entry(entry, place, token=token, k=k)
    asked = (row.places_n + 1).tolist()
    found = [_numbers(entries[place], place) for place in asked]
    width = max(len(ids) for ids, _ in found)
    # A filler is less likely than all else, and as many as k are there without it.
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in found], dtype=torch.int64)
    filled = [[*values, *[2 * _NEVER] * (width - len(values))] for _, values in found]
    log_probs, order = torch.tensor(filled, dtype=torch.float64).sort(stable=True, descending=True)
    log_probs, order = log_probs[:, :k], order[:, :k]
    log_probs = log_probs.masked_fill(log_probs <= _NEVER, -math.inf)
    _check_values(log_probs, asked)
    return Scores(ids.gather(-1, order), log_probs)


def joined(scores: Sequence[Scores], *, vocab_size: int, k: int, device: torch.device) -> TopK:
    """The scores of several rows as one signal.

    Args:
        scores: Of each row.
        vocab_size: Shared vocabulary V.
        k: Tokens of each place.
        device: Where to.
    """
    none = torch.empty((0, k))
    ids = torch.cat([none.to(torch.int64), *(one.ids for one in scores)])
    log_probs = torch.cat([none.double(), *(one.log_probs for one in scores)])
    spare = vocab_size - (ids < vocab_size).sum(-1)
    tail = implied_tail(log_probs, spare)
    return TopK(ids.to(device), log_probs.float().to(device), tail.float().to(device))


def implied_tail(log_probs: Tensor, spare: Tensor) -> Tensor:
    """The log-mass that k log-probabilities, rounded to float32 by the server, leave over.

    No token of the tail is likelier than the last of the k, so the tail is at most p_k for each of its tokens. What
    1 − Σ leaves below the rounding of the sum says nothing, so there that rounding stands in for it: the tail is never
    negative, and empty only where it must be.

    Args:
        log_probs: [n, k], float64, likeliest first.
        spare: How many tokens the tail has [n].

    Returns:
        [n], float64; −inf where the tail has no token or the last of the k has probability 0.
    """
    left = (1.0 - log_probs.exp().sum(-1)).clamp(min=_RESOLUTION)
    return torch.minimum(left, log_probs[:, -1].exp() * spare.clamp(min=0)).log()


def _check_count(choice: Mapping[str, Any], sent: list[int]) -> None:
    entries, read = choice.get("prompt_logprobs"), choice.get("prompt_token_ids")
    if not isinstance(entries, list) or (len(entries) <= 1 < len(sent)):
        raise WrongAnswerError(f"no prompt_logprobs came: {_short(entries)}; this server does not score prompts")
    if isinstance(read, list) and read != sent:
        added = f"; it put {read[: len(read) - len(sent)]} before them" if read[-len(sent) :] == sent else ""
        raise WrongAnswerError(
            f"it read {len(read)} tokens {_short(read)}, and {len(sent)} were sent: {_short(sent)}{added}"
        )
    if len(entries) != len(sent):
        why = "it adds tokens, such as BOS" if len(entries) > len(sent) else "it drops positions or cuts the prompt"
        raise WrongAnswerError(f"{len(entries)} positions came for {len(sent)} tokens: {why}")


def _check_entry(entry: Any, place: int, *, token: int, k: int) -> None:
    if not isinstance(entry, dict):
        raise WrongAnswerError(f"position {place} is {_short(entry)}, not a mapping of ids")
    if str(token) not in entry:
        raise WrongAnswerError(
            f"position {place} says nothing of token {token}, which was sent there: the server scores other tokens"
        )
    if len(entry) < k:
        raise WrongAnswerError(f"position {place} has {len(entry)} tokens, and {k} were asked for")


def _numbers(entry: Mapping[str, Any], place: int) -> tuple[list[int], list[float]]:
    """Ids and log-probabilities of one position."""
    try:
        ids, values = list(map(int, entry)), [float(said["logprob"]) for said in entry.values()]
    except (TypeError, ValueError, KeyError) as error:
        raise WrongAnswerError(f"position {place} has no log-probabilities by id: {_short(entry)}") from error
    if min(ids) < 0 or any(map(math.isnan, values)):
        raise WrongAnswerError(f"position {place} has no log-probabilities by id: {_short(entry)}")
    return ids, values


def _check_values(log_probs: Tensor, asked: list[int]) -> None:
    """Whether the likeliest tokens' numbers can be log-probabilities."""
    total = log_probs.exp().sum(-1)
    worst = int(total.argmax())
    if total[worst] > 1 + _ROUNDING:
        raise WrongAnswerError(
            f"position {asked[worst]} has no log-probabilities: the numbers of {log_probs.shape[1]} tokens, "
            f"{log_probs[worst, 0]:.4g} and less, are a probability of {total[worst]:.6g} together"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
