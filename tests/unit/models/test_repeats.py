"""``no_repeat_ngram_size`` against the rule of ``transformers``."""

from itertools import pairwise

import pytest
import torch

from amidkd.errors import SettingError
from amidkd.models import generate
from amidkd.models.repeats import Repeats
from tiny_models import tiny_model


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_banned_tokens_are_those_of_transformers(size: int) -> None:
    from transformers import NoRepeatNGramLogitsProcessor

    generator = torch.Generator().manual_seed(size)
    texts = torch.randint(0, 3, (8, 90), generator=generator)
    logits = torch.randn(8, 3, generator=generator)
    expected = NoRepeatNGramLogitsProcessor(size)(texts, logits.clone())
    repeats = Repeats([row[:4].tolist() for row in texts], size)
    for place, row in enumerate(texts.tolist()):
        for token in row[4:]:
            repeats.add(place, token)
    kept = logits.clone()
    assert torch.equal(repeats.ruled_out(logits, range(8)), expected)
    assert torch.equal(logits, kept), "the model's own logits were changed"
    assert torch.isinf(expected).any()


def test_some_texts_of_a_batch_are_told_apart() -> None:
    repeats = Repeats([[1, 2, 1], [1, 3, 1], [2]], 2)
    ruled_out = repeats.ruled_out(torch.zeros(2, 4), [1, 0])
    assert torch.isinf(ruled_out).nonzero().tolist() == [[0, 3], [1, 2]]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_answers_are_those_of_transformers(batch_size: int) -> None:
    model = tiny_model("llama_tied", seed=3)
    prompts = [[5, 9, 11], [3, 7], [7, 8, 9, 10, 7, 8]]
    settings = {
        "do_sample": False,
        "max_new_tokens": 20,
        "no_repeat_ngram_size": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    expected = []
    for prompt in prompts:
        made = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=int), **settings)
        expected.append(made[0, len(prompt) :].tolist())
    ours = {"eos_ids": [2], "pad_id": 0, "max_new_tokens": 20, "temperature": 0, "seed": 0, "batch_size": batch_size}
    free, ruled = (generate(model, prompts, no_repeat_ngram_size=size, **ours) for size in (0, 2))
    assert ruled == expected
    assert free != expected


def test_sampled_answers_keep_the_rule() -> None:
    model = tiny_model("gpt2", seed=1)
    answers = generate(
        model, [[4, 5]] * 20, eos_ids=[2], pad_id=0, max_new_tokens=30, temperature=0.3, batch_size=20, seed=7,
        no_repeat_ngram_size=2,
    )  # fmt: skip
    for answer in answers:
        text = [4, 5, *answer]
        pairs = list(pairwise(text))
        assert len(pairs) == len(set(pairs))


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(SettingError, match="no_repeat_ngram_size must be 0"):
        generate(
            tiny_model("gpt2"), [[4]], eos_ids=[2], pad_id=0, max_new_tokens=2, temperature=0, batch_size=1, seed=0,
            no_repeat_ngram_size=-1,
        )  # fmt: skip
