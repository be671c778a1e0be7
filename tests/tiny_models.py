"""Tiny models of many families, with random weights."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

FAMILIES = {
    "llama_tied": ("llama", {**_LLAMA, "tie_word_embeddings": True}),
    "llama_untied": ("llama", {**_LLAMA, "tie_word_embeddings": False}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "gemma2": ("gemma2", {**_LLAMA, "head_dim": 8, "final_logit_softcapping": 3.0, "sliding_window": 8}),
    "cohere": ("cohere", {**_LLAMA, "logit_scale": 0.25}),
    "granite": ("granite", {**_LLAMA, "logits_scaling": 8.0}),
    "opt": (
        "opt",
        {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 16,
         "max_position_embeddings": 64},
    ),
    "gpt_neox": ("gpt_neox", {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"}),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}),
}  # fmt: skip

VOCABULARY = 41


def tiny_model(family: str, *, seed: int = 0, **changes: object) -> torch.nn.Module:
    """A model of a family, whose weights are large enough that logits differ clearly."""
    model_type, fields = FAMILIES[family]
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **_SPECIAL, **{**fields, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            norm = name.endswith("weight") and ("norm" in name or "ln_" in name)
            torch.nn.init.normal_(parameter, mean=1.0 if norm else 0.0, std=0.3)
    return model.eval()
