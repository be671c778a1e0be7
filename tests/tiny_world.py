"""Words as tokens, and small models over them with random weights that differ clearly."""

from pathlib import Path
from typing import Any

import torch

WORDS = ["red", "green", "blue", "cat", "dog", "bird", "sits", "runs", "sings", "here", "there", "now"]


def make_tokenizer() -> Any:
    """A tokenizer of ``WORDS``, with `<s>`, `</s>`, `<sep>`, `<pad>` and `<unk>`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocab = {token: place for place, token in enumerate(["<pad>", "<s>", "</s>", "<sep>", "<unk>", *WORDS])}
    inner = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def make_model(*, width: int, layers: int, seed: int, padded_vocab: int) -> Any:
    """A Llama whose head is wider than the vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=padded_vocab,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.6,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def save_models(folder: Path) -> None:
    """Save two models with a tokenizer each: ``teacher/``, and a smaller ``student/``."""
    for name, width, layers, seed in (("teacher", 16, 2, 1), ("student", 8, 1, 2)):
        make_model(width=width, layers=layers, seed=seed, padded_vocab=24).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)


def make_rows(count: int) -> list[dict[str, str]]:
    """Prompts of two words with completions of two."""
    return [
        {"prompt": f"{WORDS[i % 5]} {WORDS[(i + 3) % 7]}", "completion": f"{WORDS[i % 11]} {WORDS[(i * 3) % 7]}"}
        for i in range(count)
    ]
