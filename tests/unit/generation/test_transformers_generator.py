"""Writing with the live model: the seam's answers are the loop's, and the model is left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version

from amidkd.config import SamplingConfig
from amidkd.config.policy import TransformersEngine
from amidkd.errors import SettingError
from amidkd.generation import GenerationError, Generator, Prompts, make_generator
from amidkd.models import generate
from tiny_models import tiny_model

TOKENS = [[5, 9, 11], [3], [7, 8, 9, 10, 11, 12, 13], [20, 21], [4, 4, 4, 4, 4]]
PROMPTS = Prompts(TOKENS, limits=[12, 3, 5, 12, 12], streams=[4, 8, 15, 16, 23], seed=42)
needs_continuous = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="transformers' continuous batching is an older one"
)
CONTINUOUS = TransformersEngine(continuous_batching=True)


def writer(model: Any, *, autocast: torch.dtype | None = None, **sampling: Any) -> Generator:
    return make_generator(
        SamplingConfig(batch_size=4, **sampling),
        model=model,
        tokenizer=None,
        eos_ids=[2],
        pad_id=0,
        vocab_size=30,
        run_folder=Path(),
        first=True,
        rank=0,
        world=1,
        autocast=autocast,
    )


def loop(model: Any, **settings: Any) -> list[list[int]]:
    known = {"eos_ids": [2], "pad_id": 0, "vocab_size": 30, "batch_size": 4, "temperature": 1.0}
    known |= {"max_new_tokens": PROMPTS.limits, "streams": PROMPTS.streams, "seed": PROMPTS.seed}
    return generate(model, TOKENS, **{**known, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {}, {"temperature": 0.7, "top_p": 0.8, "top_k": 9}])
def test_answers_are_those_of_the_loop(sampling: dict[str, Any]) -> None:
    model = tiny_model("llama_tied", seed=3)
    seen: list[tuple[int, int]] = []
    generator = writer(model, **sampling)
    assert isinstance(generator, Generator)
    answers = generator(PROMPTS, lambda *counts: seen.append(counts))
    generator.update_weights(7)
    generator.close()
    assert answers == loop(model, **sampling)
    assert [sum(counts) for counts in zip(*seen, strict=True)] == [5, sum(map(len, answers))]


def test_trained_weights_write_at_once() -> None:
    model = tiny_model("llama_tied", seed=3)
    generator = writer(model, temperature=0.0)
    before = generator(PROMPTS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    assert generator(PROMPTS) != before
    assert generator(PROMPTS) == loop(model, temperature=0)


@pytest.mark.parametrize("engine", [TransformersEngine(), pytest.param(CONTINUOUS, marks=needs_continuous)])
def test_no_checkpointing_while_writing_and_everything_restored(engine: TransformersEngine) -> None:
    model = tiny_model("gpt2").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.transformer.h[1].eval()
    model.config.use_cache = False
    used: list[bool] = []
    layers = [layer for layer in model.modules() if hasattr(layer, "_gradient_checkpointing_func")]
    plain = layers[0]._gradient_checkpointing_func
    for layer in layers:
        layer._gradient_checkpointing_func = lambda *args, **kwargs: used.append(True) or plain(*args, **kwargs)
    generator_state, attention = torch.get_rng_state(), model.config._attn_implementation
    writer(model, engine=engine)(PROMPTS)
    assert not used
    assert model.training
    assert not model.transformer.h[1].training
    assert model.config.use_cache is False
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), generator_state)
    model(input_ids=torch.tensor([[1, 5]]), labels=torch.tensor([[1, 5]])).loss.backward()
    assert used, "checkpointing is on again"


def test_adapters_write() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_model("llama_tied", seed=3)
    bare = loop(model, temperature=0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    answers = writer(adapted, temperature=0.0)(PROMPTS)
    assert answers != bare
    assert answers == writer(adapted.merge_and_unload(), temperature=0.0)(PROMPTS)


def test_autocast_reaches_the_model() -> None:
    model, seen = tiny_model("llama_tied"), set()
    model.lm_head.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    writer(model, autocast=torch.bfloat16)(PROMPTS)
    assert seen == {torch.bfloat16}


@needs_continuous
@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma2"])
def test_continuous_batching_is_exact_when_greedy(family: str) -> None:
    model = tiny_model(family, seed=3, **({"attn_implementation": "eager"} if family == "gemma2" else {}))
    seen: list[tuple[int, int]] = []
    answers = writer(model, temperature=0.0, engine=CONTINUOUS)(PROMPTS, lambda *counts: seen.append(counts))
    assert answers == loop(model, temperature=0)
    assert len(seen) == 5
    assert sum(tokens for _, tokens in seen) == sum(map(len, answers))


@needs_continuous
def test_continuous_batching_follows_the_sampling_settings() -> None:
    model = tiny_model("llama_tied", seed=3)
    assert writer(model, top_k=1, engine=CONTINUOUS)(PROMPTS) == loop(model, temperature=0)
    assert writer(model, top_p=1e-6, engine=CONTINUOUS)(PROMPTS) == loop(model, temperature=0)
    free = writer(model, temperature=1.5, engine=CONTINUOUS)(PROMPTS)
    assert free != loop(model, temperature=0)
    assert all(len(one) <= limit for one, limit in zip(free, PROMPTS.limits, strict=True))
    assert max(max(one) for one in free) < 30


def test_continuous_batching_refuses_what_it_cannot_do() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = tiny_model("llama_tied")
    with pytest.raises(SettingError, match="prompt 0 is empty"):
        writer(model, engine=CONTINUOUS)(Prompts([[]], [3], [0], 0))
    assert writer(model, engine=CONTINUOUS)(Prompts([], [], [], 0)) == []
    config = AutoConfig.for_model("mamba", vocab_size=41, hidden_size=16, num_hidden_layers=1, state_size=4)
    recurrent = AutoModelForCausalLM.from_config(config)
    with pytest.raises((SettingError, GenerationError), match="continuous"):
        writer(recurrent, engine=CONTINUOUS)(PROMPTS)


def test_prompts_need_a_limit_and_a_stream_each() -> None:
    with pytest.raises(ValueError, match="2 prompts, 1 limits and 2 streams"):
        Prompts([[1], [2]], [3], [0, 1], 0)
