"""A server's answer, held against what was asked before anything is learnt from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from amidkd.errors import SettingError, TeacherError
from amidkd.signals import Hidden
from amidkd.teachers.served.http import read_json
from amidkd.teachers.served.protocol import (
    PROTOCOL,
    DamagedError,
    Question,
    ScoredRow,
    Wish,
    checksum_of,
    digests_of,
    open_sealed,
)
from amidkd.transport import PassingError

__all__ = ["check_model", "read_answer", "read_head", "read_info", "read_whole"]

_MASS = 1e-3
"""How far the probabilities of an answer, tail included, may be from 1 in sum: rounding, far below a lost tail."""

_INFO = {
    "protocol": int, "fingerprint": str, "model": str, "vocab_size": int, "width": int, "hidden_bytes": int,
    "formats": list, "max_top_k": int, "max_rows": int, "max_tokens": int, "max_request_bytes": int,
    "max_answer_bytes": int,
}  # fmt: skip


def read_info(content: bytes, headers: Mapping[str, str], *, url: str) -> dict[str, Any]:
    """What a server says of itself, if it is one that can be understood.

    Args:
        content: The answer.
        headers: Its headers.
        url: Who was asked.

    Raises:
        PassingError: It is cut off or damaged.
        SettingError: It is no `amidkd serve`, or one of another version.
    """
    info = read_json(content, headers)
    # Half of the names: a damaged one does not make another server of it.
    alike = isinstance(info, dict) and 2 * len(info.keys() & _INFO.keys()) >= len(_INFO)
    # Protocol 1 had no checksum here.
    summed = alike and ("checksum" in info or info.get("protocol") == PROTOCOL)
    if summed and info.get("checksum") != checksum_of(info):
        raise PassingError("what the server says of itself does not match its checksum", gone=True)
    if alike and info.get("protocol") != PROTOCOL:
        raise SettingError(
            f"teacher.url: the server at {url} (amidkd {info.get('package')}) speaks protocol {info.get('protocol')}, "
            f"this version {PROTOCOL}; install the same version on both machines"
        )
    if not alike or any(type(info.get(name)) is not kind for name, kind in _INFO.items()):
        raise SettingError(f"teacher.url: what answers at {url} is no `amidkd serve` (for vLLM set teacher.api=vllm)")
    return info


def check_model(facts: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse what another model says.

    Raises:
        TeacherError: The server was started anew with other weights.
    """
    if facts.get("fingerprint") != fingerprint or facts.get("protocol") != PROTOCOL:
        raise TeacherError(
            f"the server now has another model (fingerprint {str(facts.get('fingerprint'))[:12]}; it was "
            f"{fingerprint[:12]}). Serve the same model again, then resume"
        )


def read_whole(
    content: bytes, headers: Mapping[str, str], *, question: Question
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A sealed answer.

    Args:
        content: The answer.
        headers: Its headers.
        question: What was asked.

    Raises:
        PassingError: It is cut off or damaged, or answers another question.
    """
    try:
        return open_sealed(question, content)
    except DamagedError as error:
        raise PassingError(str(error), gone=True) from error


def read_answer(
    content: bytes, headers: Mapping[str, str], *, rows: Sequence[ScoredRow], wish: Wish, fingerprint: str
) -> dict[str, Tensor]:
    """What the teacher says of rows: exactly these, by this model.

    Args:
        content: The answer.
        headers: Its headers.
        rows: What was asked.
        wish: How.
        fingerprint: Of the model that must have said it.

    Returns:
        The tensors of the answer.

    Raises:
        PassingError: It is damaged, or speaks of other rows.
        TeacherError: Another model said it.
    """
    tensors, facts = read_whole(content, headers, question="score")
    check_model(facts, fingerprint)
    echo, wanted = tensors.pop("digests", torch.empty(0)), digests_of(rows)
    if echo.shape != wanted.shape or not torch.equal(echo, wanted) or facts.get("format") != wish.form:
        raise PassingError("the answer speaks of other tokens than those sent")
    count = sum(len(row.places_n) for row in rows)
    wrong = _wrong_top_k(tensors, count, wish) if wish.form == "top_k" else _wrong_states(tensors, count)
    if wrong:
        raise PassingError(f"the answer is none: {wrong}")
    return tensors


def read_head(content: bytes, headers: Mapping[str, str], *, fingerprint: str, width: int) -> Hidden:
    """The head of a server's model, as a signal of no token.

    Args:
        content: The answer.
        headers: Its headers.
        fingerprint: Of the model whose head it must be.
        width: Its rows.

    Raises:
        PassingError: It is damaged.
        TeacherError: It is another model's.
    """
    tensors, facts = read_whole(content, headers, question="head")
    check_model(facts, fingerprint)
    weight, bias, scale, softcap = tensors.get("weight"), tensors.get("bias"), facts.get("scale"), facts.get("softcap")
    sound = weight is not None and weight.ndim == 2 and weight.shape[0] == width and weight.is_floating_point()
    if not sound or not isinstance(scale, float) or not isinstance(softcap, float | None):
        raise PassingError("the head is none")
    assert weight is not None
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise PassingError("the head is not finite")
    return Hidden(weight.new_empty((0, weight.shape[1])), weight, bias=bias, scale=scale, softcap=softcap)


def _wrong_top_k(tensors: Mapping[str, Tensor], count: int, wish: Wish) -> str:
    """What is wrong with a truncated answer; empty where it is sound."""
    if sorted(tensors) != ["ids", "log_probs", "log_tail"]:
        return f"it holds {', '.join(sorted(tensors))}"
    ids, log_probs, log_tail = tensors["ids"], tensors["log_probs"], tensors["log_tail"]
    shape = (count, wish.top_k)
    if ids.shape != shape or log_probs.shape != shape or log_tail.shape != (count,):
        return f"shapes {tuple(ids.shape)}, {tuple(log_probs.shape)}, {tuple(log_tail.shape)} for {shape}"
    if ids.dtype != torch.int32 or log_probs.dtype not in (torch.float32, torch.float64):
        return f"types {ids.dtype} and {log_probs.dtype}"
    if count == 0:
        return ""
    if int(ids.min()) < 0 or int(ids.max()) >= wish.vocab_size:
        return "ids beyond the vocabulary"
    ordered = ids.sort(dim=-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        return "a token listed twice"
    # NaN compares as false, and so fails here too.
    mass = torch.cat([log_probs, log_tail[:, None].to(log_probs)], dim=-1).logsumexp(-1)
    if not bool((mass.abs() <= _MASS).all()):
        return "probabilities that are not finite or do not add up to 1"
    return ""


def _wrong_states(tensors: Mapping[str, Tensor], count: int) -> str:
    """What is wrong with hidden states; empty where they are sound."""
    states = tensors.get("states")
    if states is None or len(tensors) != 1 or states.ndim != 2 or states.shape[0] != count:
        return "no hidden state for each place"
    return "" if bool(states.isfinite().all()) else "hidden states that are not finite"
