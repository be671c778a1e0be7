"""Conversations: every assistant turn is supervised with what ends it, and nothing else is."""

import pytest
from unit_data_helpers import supervised

from amidkd.config import DataConfig
from amidkd.data import Encoder, Row
from amidkd.errors import SettingError

PLAIN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED_WITHOUT_END = MARKED.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>")
# As Qwen 3: an empty thought stands before the last turn alone.
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}#thought#{% endif %}"
    "{{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# No token ends a turn.
BARE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Rewrites what was said.
UPPER = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{{ m.content | upper if m.role == 'assistant' and not loop.last else m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "sum?"},
    {"role": "assistant", "content": "asking"},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "it is 42"},
    {"role": "user", "content": "sure? it is 42"},
    {"role": "assistant", "content": "yes"},
]


def encoder(tokenizer, template, **settings) -> Encoder:
    tokenizer.chat_template = template
    return Encoder(tokenizer, DataConfig(train="x.jsonl", **settings))


def row(messages) -> Row:
    return Row(index=0, where="talk.jsonl, line 1", messages=messages)


@pytest.mark.parametrize("template", [PLAIN, MARKED, MARKED_WITHOUT_END], ids=["found", "marked", "marked without end"])
def test_all_assistant_turns_and_their_ends_and_nothing_else(characters, template) -> None:
    example = encoder(characters, template).example(row(TALK))
    assert characters.decode(example.tokens) == characters.apply_chat_template(TALK, tokenize=False)
    assert supervised(characters, example) == "asking<|end|>it is 42<|end|>yes<|end|>"
    # The end of a user's, the system's or the tool's turn is not the assistant's to say.
    end = characters.convert_tokens_to_ids("<|end|>")
    marked = [mark for token, mark in zip(example.tokens, example.targets, strict=True) if token == end]
    assert marked == [False, False, True, False, True, False, True]


def test_marked_and_found_turns_are_the_same(characters) -> None:
    assert encoder(characters, PLAIN).example(row(TALK)) == encoder(characters, MARKED).example(row(TALK))


def test_a_template_that_shows_the_last_turn_otherwise(characters) -> None:
    example = encoder(characters, THINKING).example(row(TALK))
    assert supervised(characters, example) == "asking<|end|>it is 42<|end|>#thought#yes<|end|>"


def test_a_template_that_rewrites_turns_is_refused(characters) -> None:
    with pytest.raises(SettingError, match=r"talk\.jsonl, line 1: message 3: .*generation"):
        encoder(characters, UPPER).example(row(TALK))
    assert supervised(characters, encoder(characters, UPPER).example(row(TALK[:3]))) == "asking<|end|>"


def test_a_template_without_an_end_gets_eos(characters) -> None:
    example = encoder(characters, BARE).example(row(TALK[:3]))
    assert supervised(characters, example) == "asking\n</s>"


def test_a_conversation_without_a_reply_is_a_prompt(characters) -> None:
    made = encoder(characters, PLAIN).encode([row(TALK[:6]), row(TALK)])
    assert [len(prompt.messages) for prompt in made.prompts] == [6]
    assert len(made.examples) == 1
    prompt = encoder(characters, PLAIN).prompt_tokens(row(TALK[:6]))
    assert characters.decode(prompt).endswith("sure? it is 42<|end|>\n<|assistant|>")


def test_the_prompt_of_a_labelled_conversation_stops_before_its_last_reply(characters) -> None:
    made = encoder(characters, PLAIN)
    prompt = made.prompt_tokens(row(TALK))
    assert prompt == made.prompt_tokens(row(TALK[:6]))
    tokens = made.example(row(TALK)).tokens
    assert tuple(prompt) == tokens[: len(prompt)]


def test_a_long_conversation_is_cut_at_its_end(characters) -> None:
    whole = encoder(characters, PLAIN).example(row(TALK))
    cut = encoder(characters, PLAIN, max_length=len(whole.tokens) - 3).encode([row(TALK)])
    assert supervised(characters, cut.examples[0]) == "asking<|end|>it is 42<|end|>ye"
    assert cut.truncated == 1


def test_a_long_opening_is_a_long_prompt(characters) -> None:
    with pytest.raises(SettingError, match=r"talk\.jsonl, line 1: the prompt has \d+ tokens, over the limit of 9"):
        encoder(characters, PLAIN, max_length=10).encode([row(TALK)])
    made = encoder(characters, PLAIN, max_length=10, long_prompts="drop").encode([row(TALK)])
    assert made.dropped == {"prompt over the limit": 1}


def test_no_chat_template_names_the_fix(characters) -> None:
    with pytest.raises(SettingError, match="no chat template; use the tokenizer of a chat model"):
        encoder(characters, None).example(row(TALK))


def test_a_conversation_that_the_template_refuses_names_its_line(characters) -> None:
    refusing = "{% if messages[0].role != 'user' %}{{ raise_exception('must start with user') }}{% endif %}" + PLAIN
    with pytest.raises(SettingError, match=r"talk\.jsonl, line 1: .*must start with user"):
        encoder(characters, refusing).example(row(TALK))


@pytest.mark.parametrize("name", ["gpt2-base", "tinyllama-1.1b-3T", "mistral-7b-v0.1"])
def test_real_tokenizers(shared, name) -> None:
    from amidkd.models import load_tokenizer

    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    # Zephyr's template, which TinyLlama's chat model has.
    template = (
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    example = encoder(tokenizer, template, max_length=2048).example(row(TALK))
    eos = tokenizer.eos_token
    assert supervised(tokenizer, example).replace(" ", "") == f"asking{eos}itis42{eos}yes{eos}"
    assert sum(t == tokenizer.eos_token_id for t in example.tokens) == len(TALK)
