"""Answers: exact under batching, reproducible, cut where they should be, and free of side effects."""

import itertools
from pathlib import Path

import pytest
import torch

from amidkd.errors import SettingError
from amidkd.models import generate, load_model, load_tokenizer
from amidkd.models.sampling import Sampling, random_numbers
from tiny_models import VOCABULARY, tiny_model

PROMPTS = [[5, 9, 11], [3], [7, 8, 9, 10, 11, 12, 13], [20, 21], [4, 4, 4, 4, 4]]


def answer(model: torch.nn.Module, prompts: list[list[int]] = PROMPTS, **changes: object) -> list[list[int]]:
    settings = {"eos_ids": [2], "pad_id": 0, "max_new_tokens": 12, "temperature": 0, "batch_size": 8, "seed": 0}
    return generate(model, prompts, **{**settings, **changes})  # type: ignore[arg-type]


def greedy_by_hand(model: torch.nn.Module, prompt: list[int], eos: int, new: int) -> list[int]:
    """No cache, no batch, no padding."""
    tokens = list(prompt)
    for _ in range(new):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax())
        tokens.append(token)
        if token == eos:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma2", "opt", "gpt_neox", "cohere"])
def test_batched_greedy_equals_each_prompt_alone(family: str) -> None:
    """Gemma 2's window (8) is shorter than the rows, so its sliding cache is used too."""
    model = tiny_model(family, seed=3)
    free = [greedy_by_hand(model, prompt, 2, 12) for prompt in PROMPTS]
    # An EOS that ends the answers at as many different lengths as can be had.
    eos = max(range(VOCABULARY), key=lambda token: len({(*one, token).index(token) for one in free}))
    wanted = [greedy_by_hand(model, prompt, eos, 12) for prompt in PROMPTS]
    assert len({len(one) for one in wanted}) > 1
    assert answer(model, eos_ids=[eos]) == wanted
    assert answer(model, eos_ids=[eos], batch_size=2) == wanted


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}),
        ("rwkv", {"hidden_size": 16, "num_hidden_layers": 2, "attention_hidden_size": 16}),
        ("recurrent_gemma", {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32,
                             "intermediate_size": 48}),
        ("lfm2", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "intermediate_size": 48, "layer_types": ["conv", "full_attention"]}),
    ],
)  # fmt: skip
def test_recurrent_and_hybrid_models_are_exact_too(model_type: str, fields: dict[str, object]) -> None:
    """Their states must not read padding; some cannot lose rows of a batch."""
    from transformers import AutoConfig, AutoModelForCausalLM

    special = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, **special, **fields)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        model.get_output_embeddings().weight.data.normal_(std=0.3)
    prompts = [*PROMPTS, [8, 9], [30, 31]]
    free = [greedy_by_hand(model, prompt, 99, 6) for prompt in prompts]
    eos = max(range(VOCABULARY), key=lambda token: len({(*one, token).index(token) for one in free}))
    assert answer(model, prompts, max_new_tokens=6, eos_ids=[eos]) == [
        greedy_by_hand(model, prompt, eos, 6) for prompt in prompts
    ]


def test_same_seed_same_answers_whatever_the_batches() -> None:
    model = tiny_model("llama_tied")
    first = answer(model, temperature=1.0, seed=5)
    torch.manual_seed(1234)
    assert answer(model, temperature=1.0, seed=5) == first
    assert answer(model, temperature=1.0, seed=5, batch_size=2) == first
    assert answer(model, temperature=1.0, seed=6) != first


def test_equal_prompts_get_different_samples() -> None:
    answers = answer(tiny_model("llama_tied"), [[5, 9]] * 6, temperature=1.0)
    assert len({tuple(one) for one in answers}) > 3


def test_leaves_generator_mode_and_settings_alone() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[1].eval()
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    before, settings = torch.get_rng_state(), model.generation_config.to_dict()
    answers = answer(model, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert not model.transformer.h[1].training
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False
    assert model.generation_config.to_dict() == settings
    assert answers == answer(model.eval(), temperature=1.0)


def test_the_models_generation_settings_do_not_leak_in() -> None:
    model = tiny_model("llama_tied")
    plain = answer(model, temperature=1.0)
    model.generation_config.update(temperature=0.01, top_k=1, max_length=5, do_sample=False, eos_token_id=[9, 10, 11])
    assert answer(model, temperature=1.0) == plain


def test_eos_ends_an_answer_and_is_part_of_it() -> None:
    model = tiny_model("llama_tied")
    eos = list(range(3, VOCABULARY, 3))
    for one in answer(model, PROMPTS * 10, temperature=1.0, eos_ids=eos, max_new_tokens=20):
        assert one
        assert not set(one[:-1]) & set(eos)
        assert one[-1] in eos or len(one) == 20


def test_ids_beyond_the_vocabulary_never_come() -> None:
    model = tiny_model("llama_tied")
    for temperature in (0, 2.0):
        found = set(itertools.chain(*answer(model, PROMPTS * 5, temperature=temperature, vocab_size=6)))
        assert found
        assert max(found) < 6


def test_answers_end_at_the_context() -> None:
    model = tiny_model("gpt2", n_positions=10)
    lengths = [len(one) for one in answer(model, eos_ids=[], max_new_tokens=8)]
    assert lengths == [7, 8, 3, 8, 5]
    with pytest.raises(SettingError, match=r"prompt 1 has 10 tokens.*context of 10"):
        answer(model, [[3], [4] * 10])


def test_rows_that_are_done_do_not_outgrow_the_context() -> None:
    """One row of thirty is full early, while the others go on: too few to leave, but positions must not run out."""
    model = tiny_model("gpt2", n_positions=10)
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12], *[[index] for index in range(3, 32)]]
    answers = answer(model, prompts, eos_ids=[], batch_size=32)
    assert [len(one) for one in answers] == [2] + [9] * 29
    assert answers[0] == greedy_by_hand(model, prompts[0], 99, 2)


def test_progress_counts_prompts_and_tokens() -> None:
    seen: list[tuple[int, int]] = []
    answers = answer(tiny_model("gpt2"), batch_size=2, progress=lambda *counts: seen.append(counts))
    assert [rows for rows, _ in seen] == [2, 2, 1]
    assert sum(tokens for _, tokens in seen) == sum(map(len, answers))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"prompts": [[3], []]}, "prompt 1 is empty"),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        answer(tiny_model("llama_tied"), **changes)  # type: ignore[arg-type]


def test_logits_that_are_not_numbers_stop_generation() -> None:
    model = tiny_model("llama_tied")
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(SettingError, match="NaN"):
        answer(model)


def test_no_prompts_no_answers() -> None:
    assert answer(tiny_model("llama_tied"), []) == []


def test_samples_follow_the_distribution() -> None:
    """Chi-squared over 7 outcomes of 20,000 draws; the 99.9 % point with 6 degrees of freedom is 22.5."""
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, float("-inf"), 0.5, -3.0, 1.5]]).expand(20_000, -1)
    uniform = random_numbers(3, list(range(20_000)), 1)[:, 0]
    for temperature in (1.0, 0.7):
        found = Sampling(temperature=temperature).choose(logits, uniform).bincount(minlength=8)
        wanted = 20_000 * (logits[0] / temperature).softmax(-1)
        assert found[4] == 0
        live = wanted > 0
        assert float(((found[live] - wanted[live]) ** 2 / wanted[live]).sum()) < 22.5


def test_top_k_and_top_p_keep_what_they_say() -> None:
    probs = torch.tensor([[0.05, 0.4, 0.1, 0.3, 0.15]])
    logits, uniform = probs.log().expand(2000, -1), random_numbers(0, list(range(2000)), 1)[:, 0]
    kept = {
        (0, 1.0): {0, 1, 2, 3, 4},
        (2, 1.0): {1, 3},
        (0, 0.69): {1, 3},
        (0, 0.71): {1, 3, 4},
        (0, 1e-9): {1},
        (3, 0.99): {1, 3, 4},
        (1, 1.0): {1},
    }
    for (top_k, top_p), ids in kept.items():
        found = Sampling(top_k=top_k, top_p=top_p).choose(logits, uniform)
        assert set(found.tolist()) == ids, (top_k, top_p)


def test_the_largest_random_number_never_picks_a_token_without_mass() -> None:
    logits = torch.full((1, 50), float("-inf"))
    logits[0, :30] = 0.0
    almost_one = torch.tensor([1 - 2.0**-53], dtype=torch.float64)
    assert int(Sampling().choose(logits, almost_one)) == 29
    assert int(Sampling().choose(logits, torch.zeros(1, dtype=torch.float64))) == 0
    logits[0, :5] = float("-inf")
    assert int(Sampling().choose(logits, torch.zeros(1, dtype=torch.float64))) == 5


def test_rows_and_seeds_have_streams_of_their_own() -> None:
    numbers = [tuple(row) for seed in range(20) for row in random_numbers(seed, list(range(20)), 3).tolist()]
    assert len(set(numbers)) == 400
    assert torch.equal(random_numbers(7, [4], 3)[0], random_numbers(7, [1, 4], 3)[1])


def test_real_model_writes_real_stories(shared: Path) -> None:
    source = shared / "models" / "stories260K-hf"
    model, tokenizer = load_model(source), load_tokenizer(source)
    [story] = answer(model, [tokenizer("Once upon a time")["input_ids"]], max_new_tokens=20)
    assert tokenizer.decode(story).startswith(", there was a")
