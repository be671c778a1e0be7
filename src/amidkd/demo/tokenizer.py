"""The demo's tokenizer: one token a word that the task knows, letters for the rest. Built by rule, not trained."""

import re
from typing import Any

from amidkd.demo.skills import SKILLS
from amidkd.demo.words import CATEGORIES, DAYS, MONTHS, NOUNS, NUMBER_WORDS, OPPOSITES, PAST, plurals

__all__ = ["build_tokenizer"]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<answer>")
_LARGEST_NUMBER = 24
_SUFFIXES = ("es", "ed", "ies", "ves")
# Log-probabilities of the unigram model. Only their order matters: a whole word before word + suffix before letters.
_WORD, _SUFFIX, _CHARACTER = -1.0, -4.0, -10.0


def build_tokenizer() -> Any:
    """Make the tokenizer: a unigram model over the task's words, a few suffixes and all printable ASCII characters.

    A word carries the blank before it (``▁cat``), so that text decodes to what it was; a word that is unknown, or
    written backwards, is spelt in letters.

    Returns:
        A ``PreTrainedTokenizerFast`` with ``<s>``, ``</s>``, ``<pad>``, ``<unk>``, and ``<answer>`` between the
        prompt and its answer.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(f"▁{word}", _WORD) for word in _words()]
    pieces += [(suffix, _SUFFIX) for suffix in _SUFFIXES]
    pieces += [(character, _CHARACTER) for character in ("▁", *map(chr, range(33, 127)))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<answer>"],
        model_max_length=64,
        clean_up_tokenization_spaces=False,
    )


def _words() -> list[str]:
    """Every word of the task's wordings and answers, numbers and single letters; sorted, each once."""
    found = {word for skill in SKILLS for text in skill.templates for word in re.findall(r"[A-Za-z]+", _bare(text))}
    found |= {*NOUNS, *DAYS, *MONTHS, *NUMBER_WORDS, *OPPOSITES, *PAST}
    found |= {word for category in CATEGORIES for word in category.split()}
    found |= {form for forms in (*OPPOSITES.values(), *PAST.values()) for form in forms}
    found |= {plural for noun in NOUNS for plural in plurals(noun) if not plural.startswith(noun)}
    found |= {"a", "an", "is", "the", "of", "it", "plus", "opposite", "day", "month"}
    found |= {"after", "before"} | {plural for category in CATEGORIES for plural in plurals(category)[0].split()}
    found |= {str(number) for number in range(_LARGEST_NUMBER + 1)}
    found |= set("abcdefghijklmnopqrstuvwxyz")
    return sorted(found)


def _bare(template: str) -> str:
    return re.sub(r"\{\w+\}", " ", template)
