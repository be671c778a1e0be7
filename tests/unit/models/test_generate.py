"""Answers: exact under batching, reproducible, cut where they should be, and free of side effects."""

import itertools
from pathlib import Path

import pytest
import torch

from amidkd.errors import SettingError
from amidkd.models import generate, load_model, load_tokenizer
from amidkd.models.generate import _Forward
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


def test_streams_and_limits_belong_to_their_prompts() -> None:
    """An answer depends on seed, stream, prompt and weights alone: not on its place, nor on its neighbours."""
    model = tiny_model("llama_tied")
    limits = [12, 3, 5, 7, 1]
    first = answer(model, temperature=1.0, eos_ids=[], streams=[7, 70, 700, 9, 90], max_new_tokens=limits)
    assert [len(one) for one in first] == limits
    order = [3, 0, 4]
    again = answer(
        model,
        [PROMPTS[index] for index in order],
        temperature=1.0,
        eos_ids=[],
        streams=[[7, 70, 700, 9, 90][index] for index in order],
        max_new_tokens=[limits[index] for index in order],
        batch_size=1,
    )
    assert again == [first[index] for index in order]
    one, other = answer(model, [[5, 9]] * 2, temperature=1.0, streams=[4, 4])
    assert one == other
    with pytest.raises(SettingError, match="one value for each of 5 prompts"):
        answer(model, streams=[1, 2])


@pytest.mark.parametrize("family", ["llama_untied", "gpt2", "gemma2", "opt", "gptj", "granite"])
def test_padding_leaves_the_logits_as_they_are(family: str) -> None:
    """Every step's logits of a padded batch are those of each prompt alone, without cache or padding."""
    model, steps = tiny_model(family, seed=1), 4
    rows = [list(prompt) for prompt in PROMPTS]
    forward = _Forward(model, PROMPTS, 0, steps, caches=True)
    with torch.no_grad():
        for _ in range(steps):
            batched = forward.next_logits()
            alone = [model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows]
            torch.testing.assert_close(batched, torch.stack(alone), rtol=1e-4, atol=1e-4)
            chosen = batched.argmax(dim=-1)
            forward.extend(chosen)
            rows = [[*row, int(token)] for row, token in zip(rows, chosen, strict=True)]


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_greedy_equals_transformers_generate(family: str) -> None:
    model = tiny_model(family, seed=2)
    width = max(map(len, PROMPTS))
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    made = model.generate(
        input_ids=tokens, attention_mask=attention, do_sample=False, max_new_tokens=20, eos_token_id=2, pad_token_id=0
    )
    wanted = [row[: row.index(2) + 1] if 2 in row else row for row in made[:, width:].tolist()]
    assert answer(model, max_new_tokens=20) == wanted


def test_real_model_writes_real_stories(shared: Path) -> None:
    source = shared / "models" / "stories260K-hf"
    model, tokenizer = load_model(source), load_tokenizer(source)
    [story] = answer(model, [tokenizer("Once upon a time")["input_ids"]], max_new_tokens=20)
    assert tokenizer.decode(story).startswith(", there was a")
