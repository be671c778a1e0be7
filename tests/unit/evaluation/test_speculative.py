"""Assisted generation, counted: against the textbook on full logits, and measured against predicted."""

import copy
import math

import numpy as np
import pytest
import torch

from amidkd.errors import SettingError
from amidkd.evaluation.narrow import narrowed
from amidkd.evaluation.speculative import draft, tokens_per_step
from amidkd.evaluation.statistics import estimate
from tiny_models import tiny_model
from tiny_world import make_model

V = 17
PROMPTS = [[1, 5, 6, 3], [1, 7, 3], [1, 8, 9, 10, 11, 3]]


def counted(
    student, teacher, prompts=PROMPTS, *, temperature: float = 1.0, gamma: int = 3, seed: int = 0, length: int = 20
):
    return draft(
        student,
        teacher,
        prompts,
        vocab_size=V,
        eos_ids=[2],
        max_new_tokens=length,
        draft_tokens=gamma,
        temperature=temperature,
        seed=seed,
    )


@pytest.fixture(scope="module")
def pair():
    """A student and a teacher with heads of different widths, both wider than the vocabulary."""
    return (
        make_model(width=8, layers=1, seed=1, padded_vocab=20),
        make_model(width=16, layers=2, seed=2, padded_vocab=24),
    )


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_measured_is_an_estimate_of_predicted(pair, temperature: float) -> None:
    found = counted(*pair, prompts=PROMPTS * 8, temperature=temperature)
    judged, overlap = sum(found.judged), sum(found.overlap)
    assert judged > 150
    # Each judged token is kept with probability 1 − TV, whatever came before: a martingale of bounded steps.
    mean = overlap / judged
    assert 0.05 < mean < 0.95
    assert abs(sum(found.accepted) - overlap) < 4 * math.sqrt(judged * mean * (1 - mean))


def test_overlap_is_one_minus_total_variation_on_full_logits_in_float64(pair) -> None:
    """Draft one token at a time: then every position of the answer but those of bonus tokens is judged."""
    student, teacher = doubled = [copy.deepcopy(model).double() for model in pair]
    answers: list[list[int]] = []
    inner = teacher.generate

    def kept(ids, **settings):
        tokens = inner(ids, **settings)
        if "assistant_model" in settings:
            answers.append(tokens[0].tolist())
        return tokens

    teacher.generate = kept
    try:
        found = counted(student, teacher, gamma=1)
    finally:
        del teacher.generate
    for number, (prompt, tokens) in enumerate(zip(PROMPTS, answers, strict=True)):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            p, q = (model(ids).logits[0, :, :V].softmax(-1) for model in doubled)
        overlap = torch.minimum(p, q).sum(-1)
        # A round that keeps its token gives two tokens, one that does not gives one; try all ways to cut the answer.
        sums = _ways(overlap.tolist(), len(prompt) - 1, len(tokens) - 1, found.judged[number], found.accepted[number])
        assert min(abs(value - found.overlap[number]) for value in sums) < 1e-5


def _ways(overlap: list[float], place: int, end: int, judged: int, accepted: int) -> set[float]:
    """Sums over all cuts of an answer into rounds with so many judged and accepted tokens; a last token may be bare."""
    if place >= end:
        return {0.0} if judged == 0 and accepted == 0 else set()
    found = set()
    if judged:
        rest = _ways(overlap, place + 2, end, judged - 1, accepted - 1) if accepted else set()
        rest |= _ways(overlap, place + 1, end, judged - 1, accepted)
        found |= {overlap[place] + value for value in rest}
    if place == end - 1 and judged == 0 and accepted == 0:
        found.add(0.0)
    return found


def test_a_model_drafts_for_itself_without_a_loss(pair) -> None:
    _, teacher = pair
    twin = make_model(width=16, layers=2, seed=2, padded_vocab=24)
    found = counted(twin, teacher, gamma=4)
    assert found.accepted == found.judged == found.drafted
    assert np.allclose(found.overlap, found.judged, atol=1e-4)
    assert found.to_json()["tokens_per_step_predicted"] == pytest.approx(5.0, abs=1e-3)
    # 20 tokens are 4 rounds of 4 drafted and 1 of its own, unless the answer ends.
    assert all(steps == math.ceil(tokens / 5) for steps, tokens in zip(found.steps, found.tokens, strict=True))


def test_counts_hang_together_and_answers_stay_within_the_vocabulary_and_length(pair) -> None:
    found = counted(*pair)
    for drafted, judged, accepted, steps, tokens in zip(
        found.drafted, found.judged, found.accepted, found.steps, found.tokens, strict=True
    ):
        assert accepted <= judged <= drafted <= 3 * steps
        assert judged - accepted <= steps
        # Every round adds what it kept and one of the teacher's; an end of text takes the place of that one.
        assert accepted + steps - 1 <= tokens <= accepted + steps
        assert tokens <= 20
    scores = found.scores(5)
    assert scores["acceptance_measured"].counts.tolist() == [*map(float, found.judged), 0.0, 0.0]
    assert estimate(scores["acceptance_measured"]).value == sum(found.accepted) / sum(found.judged)
    assert counted(*pair).accepted == found.accepted


def test_models_are_left_as_they_were(pair) -> None:
    student, teacher = pair
    before = [(m.config.vocab_size, m.generation_config, m.training) for m in pair]
    state = torch.get_rng_state()
    student.train()
    counted(student, teacher)
    assert student.training
    student.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert [(m.config.vocab_size, m.generation_config, m.training) for m in pair] == before
    assert teacher(torch.tensor([[1, 5]])).logits.shape[-1] == 24


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "gpt_neox"])
def test_other_families(family: str) -> None:
    found = counted(tiny_model(family, seed=3), tiny_model(family, seed=4), PROMPTS[:1], length=10)
    assert found.judged[0] > 0


def test_what_cannot_draft_is_refused(pair) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4)
    with pytest.raises(SettingError, match="the state of the student \\(MambaForCausalLM\\) cannot be"):
        counted(MambaForCausalLM(config), pair[1])
    with pytest.raises(SettingError, match="no room for a draft"):
        counted(*pair, prompts=[[1] * 63])


def test_a_constant_rate_gives_a_geometric_number_of_tokens() -> None:
    for rate in (0.0, 0.3, 0.9):
        assert tokens_per_step(rate, 4) == pytest.approx((1 - rate**5) / (1 - rate))
    assert tokens_per_step(1.0, 4) == 5.0


@pytest.mark.parametrize("family", ["llama_tied", "gemma2", "cohere", "gpt2"])
def test_a_narrowed_model_has_the_same_logits_of_fewer_tokens(family: str) -> None:
    model, ids = tiny_model(family), torch.tensor([[1, 5, 6]])
    with torch.no_grad():
        wide = model(ids).logits
        with narrowed(model, V):
            assert torch.equal(model(ids).logits, wide[..., :V])
            assert model.config.vocab_size == V
        assert torch.equal(model(ids).logits, wide)
        with narrowed(model, 1000):
            assert torch.equal(model(ids).logits, wide)
