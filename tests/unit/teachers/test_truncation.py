"""A full signal as its likeliest tokens and a tail."""

import pytest
import torch

from amidkd.signals import Hidden, Logits
from amidkd.teachers import truncation
from amidkd.teachers.truncation import truncated


@pytest.fixture
def signal() -> Hidden:
    numbers = torch.Generator().manual_seed(0)
    states, weight = torch.randn(7, 4, generator=numbers), torch.randn(12, 4, generator=numbers)
    return Hidden(states, weight, scale=2.0, softcap=3.0)


def log_probs(signal: Hidden) -> torch.Tensor:
    return (3.0 * torch.tanh(2.0 * signal.states @ signal.weight[:10].T / 3.0)).log_softmax(-1)


@pytest.mark.parametrize("numbers", [2**24, 25])
def test_head_padding_and_tail(signal: Hidden, numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truncation, "_NUMBERS", numbers)
    found, wanted = truncated(signal, 3, vocab_size=10), log_probs(signal).sort(-1, descending=True)
    assert torch.equal(found.ids, wanted.indices[:, :3])
    torch.testing.assert_close(found.log_probs, wanted.values[:, :3])
    torch.testing.assert_close(found.log_tail, wanted.values[:, 3:].logsumexp(-1))


def test_all_of_it_has_no_tail(signal: Hidden) -> None:
    found = truncated(signal, 100, vocab_size=10)
    assert found.ids.shape == (7, 10)
    assert bool((found.log_tail == -torch.inf).all())
    torch.testing.assert_close(found.log_probs, log_probs(signal).gather(-1, found.ids))


def test_masked_tokens_and_wide_types_survive() -> None:
    found = truncated(Logits(torch.tensor([[0.0, -torch.inf, 1.0]], dtype=torch.float64)), 3, vocab_size=3)
    assert found.log_probs.dtype == torch.float64
    assert found.log_probs[0, 2] == found.log_tail[0] == -torch.inf


def test_no_token() -> None:
    found = truncated(Logits(torch.empty(0, 5)), 2, vocab_size=5)
    assert found.ids.shape == found.log_probs.shape == (0, 2)
    assert found.log_tail.shape == (0,)
