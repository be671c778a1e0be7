"""A tokenizer of single characters, whose EOS is its pad token and whose texts start with BOS."""

from typing import Any

import pytest

SPECIAL = ["</s>", "<s>", "<sep>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>"]
CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n"]
EOS, BOS = 0, 1


def make_characters() -> Any:
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(WordLevel({t: i for i, t in enumerate([*SPECIAL, *CHARACTERS])}, unk_token="?"))
    inner.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = Fuse()
    inner.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=SPECIAL[2:],
    )


@pytest.fixture
def characters() -> Any:
    """One character, one token; EOS is the pad token."""
    return make_characters()
