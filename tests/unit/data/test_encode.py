"""What is supervised, where EOS goes, what is cut: the traps."""

import warnings

import pytest
from unit_data_helpers import supervised

from amidkd.config import DataConfig
from amidkd.data import INSTRUCTION, Encoder, Row, collate, load_rows, special_prefix
from amidkd.errors import SettingError, SettingWarning

EOS, BOS = 0, 1


def encoder(tokenizer, **settings) -> Encoder:
    return Encoder(tokenizer, DataConfig(train="x.jsonl", **settings))


def row(prompt="ab", completion="cd", **more) -> Row:
    return Row(index=7, where="rows.jsonl, line 8", prompt=prompt, completion=completion, **more)


def test_eos_is_supervised_even_when_it_is_the_pad_token(characters) -> None:
    assert characters.pad_token_id == characters.eos_token_id
    example = encoder(characters).example(row())
    assert supervised(characters, example) == "cd</s>"
    batch = collate([example, encoder(characters).example(row(completion="longer"))], pad_id=characters.pad_token_id)
    assert batch.labels_N().tolist()[:3] == [*characters("cd", add_special_tokens=False).input_ids, EOS]
    assert batch.token_count() == 3 + 7


def test_boundary_is_exact(characters) -> None:
    example = encoder(characters).example(row())
    assert characters.decode(example.tokens) == "<s>abcd</s>"
    assert example.targets == (False, False, False, True, True, True)
    assert example.row == 7
    assert example.origin == "data"


def test_eos_is_not_doubled(characters) -> None:
    example = encoder(characters, completion_template="{completion}</s>").example(row())
    assert supervised(characters, example) == "cd</s>"


def test_an_empty_completion_teaches_to_stop(characters) -> None:
    assert supervised(characters, encoder(characters).example(row(completion=""))) == "</s>"


def test_bos_comes_once(characters) -> None:
    assert encoder(characters).prompt_tokens(row())[:2] == [BOS, *characters("a", add_special_tokens=False).input_ids]
    own = encoder(characters, prompt_template="<s>{prompt}<sep>")
    assert characters.decode(own.prompt_tokens(row())) == "<s>ab<sep>"
    forced = encoder(characters, prompt_template="<s>{prompt}<sep>", add_special_tokens=True)
    assert characters.decode(forced.prompt_tokens(row())) == "<s>ab<sep>"
    without = encoder(characters, add_special_tokens=False)
    assert characters.decode(without.prompt_tokens(row())) == "ab"
    ready = encoder(characters, prompt_template="instruction")
    assert ready.prompt_tokens(row())[0] == BOS


def test_a_template_that_forgets_bos_is_noticed(characters) -> None:
    with pytest.warns(SettingWarning, match="starts a text with <s>, and the template does not"):
        made = encoder(characters, prompt_template="Q: {prompt}")
    assert characters.decode(made.prompt_tokens(row())) == "Q: ab"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(characters, prompt_template="Q: {prompt}", add_special_tokens=False)
        encoder(characters, prompt_template="<s>{prompt}")


def test_braces_elsewhere_are_safe(characters) -> None:
    made = encoder(characters, prompt_template="<s>{x} {prompt} {}", completion_template="{{{completion}}}")
    example = made.example(row(prompt="{completion} {prompt} {0}", completion="{y}"))
    assert characters.decode(example.tokens) == "<s>{x} {completion} {prompt} {0} {}{{{y}}}</s>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_template": "no place"}, r"data\.prompt_template = 'no place' must hold \{prompt\}.*instruction"),
        ({"completion_template": "{prompt}"}, r"data\.completion_template = '\{prompt\}' must hold \{completion\}"),
    ],
)
def test_a_template_without_its_place_is_refused(characters, settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        encoder(characters, **settings)


def test_a_prompt_in_the_papers_template_is_not_wrapped_again(characters) -> None:
    made = encoder(characters, prompt_template="instruction", max_length=1000)
    bare = made.prompt_tokens(row(prompt="Say hello."))
    wrapped = made.prompt_tokens(row(prompt=INSTRUCTION.replace("{prompt}", "Say hello.")))
    assert bare == wrapped
    assert characters.decode(bare).endswith("### Instruction:\nSay hello.\n\n### Response:\n")


def test_a_cut_completion_has_no_eos_and_is_counted(characters) -> None:
    made = encoder(characters, max_length=6).encode([row(completion="cdefgh"), row(completion="cd")])
    assert supervised(characters, made.examples[0]) == "cde"
    assert supervised(characters, made.examples[1]) == "cd</s>"
    assert made.truncated == 1
    assert made.dropped == {}


def test_a_completion_that_fills_the_length_exactly_still_loses_its_eos(characters) -> None:
    made = encoder(characters, max_length=5).encode([row()])
    assert supervised(characters, made.examples[0]) == "cd"
    assert made.truncated == 1


def test_a_completion_marked_as_cut_off_gets_no_eos(characters) -> None:
    assert supervised(characters, encoder(characters).example(row(finished=False))) == "cd"


def test_a_prompt_is_never_cut_in_silence(characters) -> None:
    long = row(prompt="abcdefghij")
    with pytest.raises(
        SettingError, match=r"rows\.jsonl, line 8: the prompt has 11 tokens, over the limit of 7 .*drop"
    ):
        encoder(characters, max_length=8).encode([long])
    dropped = encoder(characters, max_length=8, long_prompts="drop").encode([long, row()])
    assert dropped.dropped == {"prompt over the limit": 1}
    assert len(dropped.examples) == 1
    kept = encoder(characters, max_length=8, max_prompt_length=4, long_prompts="keep_end").encode([long])
    assert characters.decode(kept.examples[0].tokens) == "<s>hijcd</s>"
    assert supervised(characters, kept.examples[0]) == "cd</s>"


def test_long_prompts_rules_prompt_only_rows_too(characters) -> None:
    rows = [row(prompt="abcdefghij", completion=None), row(completion=None)]
    made = encoder(characters, max_length=8, long_prompts="drop").encode(rows)
    assert made.prompts == rows[1:]
    assert made.dropped == {"prompt over the limit": 1}
    assert encoder(characters, max_length=8, long_prompts="drop").prompt_tokens(rows[0]) is None
    with pytest.raises(SettingError, match="over the limit"):
        encoder(characters, max_length=8).encode(rows)


def test_every_prompt_leaves_room_for_a_supervised_token(characters) -> None:
    made = encoder(characters, max_length=4, max_prompt_length=100).encode([row()])
    assert supervised(characters, made.examples[0]) == "c"


def test_plain_text_is_supervised_but_for_its_first_token(characters) -> None:
    text = Row(index=0, where="t, line 1", text="story")
    example = encoder(characters).example(text)
    assert characters.decode(example.tokens) == "<s>story</s>"
    assert supervised(characters, example) == "story</s>"
    cut = encoder(characters, max_length=4).encode([text])
    assert supervised(characters, cut.examples[0]) == "sto"
    assert cut.truncated == 1


def test_text_that_yields_no_supervised_token_is_dropped_and_counted(characters) -> None:
    characters.backend_tokenizer.post_processor = None
    characters = type(characters)(tokenizer_object=characters.backend_tokenizer, eos_token="</s>")
    assert special_prefix(characters) == []
    made = encoder(characters).encode([Row(index=0, where="t, line 1", text=""), row()])
    assert made.dropped == {"no supervised token": 1}
    assert len(made.examples) == 1


def test_answers_by_ids_are_taken_as_they_are(characters) -> None:
    made = encoder(characters, max_length=6)
    example = made.example_from_tokens(3, [BOS, 20], [30, 31, EOS], "teacher")
    assert example.tokens == (BOS, 20, 30, 31, EOS)
    assert example.targets == (False, False, True, True, True)
    assert (example.row, example.origin) == (3, "teacher")
    assert made.example_from_tokens(3, [BOS, 20], [30, 31], "student").tokens[-1] == 31
    assert made.example_from_tokens(3, [BOS] * 6, [30], "teacher") is None
    assert made.example_from_tokens(3, [BOS] * 5, [30, 31], "teacher").tokens == (*[BOS] * 5, 30)


def test_completion_text_comes_without_its_template(characters) -> None:
    made = encoder(characters, completion_template=" => {completion}.</s>")
    tokens = made.example(row()).tokens[3:]
    assert made.completion_text(tokens) == "cd."
    assert (
        encoder(characters, completion_template="[{completion}]").completion_text(
            characters("[cd]", add_special_tokens=False).input_ids
        )
        == "cd"
    )


def test_templates_that_touch_no_row_are_noticed(characters) -> None:
    with pytest.warns(SettingWarning, match="have no effect"):
        encoder(characters, prompt_template="<s>{prompt}").encode([Row(index=0, where="t, line 1", text="x")])


def test_a_tokenizer_without_eos_is_refused(characters) -> None:
    characters.eos_token = None
    with pytest.raises(SettingError, match="no EOS token"):
        encoder(characters)


def test_an_empty_prompt_without_bos_cannot_be_answered(characters) -> None:
    with pytest.raises(SettingError, match=r"rows\.jsonl, line 8: the prompt has no token"):
        encoder(characters, add_special_tokens=False).prompt_tokens(row(prompt=""))


def test_special_prefix_leaves_out_what_comes_after(characters) -> None:
    from tokenizers.processors import TemplateProcessing

    characters.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    assert special_prefix(characters) == [BOS]
    assert characters.decode(encoder(characters).prompt_tokens(row())) == "<s>ab"


def test_pronunciation_rows_give_the_ids_that_their_models_read(shared) -> None:
    from amidkd.models import load_tokenizer

    tokenizer = load_tokenizer(shared / "models" / "g2p-teacher")
    made = encoder(tokenizer, prompt_template="<s>{prompt}<sep>", max_length=64)
    words = load_rows(shared / "data" / "g2p_cmudict_valid.jsonl", max_rows=4)
    example = made.example(words[3])  # abbott: AE1 B AH0 T
    ids = tokenizer.convert_tokens_to_ids(["<s>", *"abbott", "<sep>", "AE1", "B", "AH0", "T", "</s>"])
    assert tokenizer.unk_token_id not in ids
    assert list(example.tokens) == ids == [1, 5, 6, 6, 19, 24, 24, 3, 35, 49, 37, 87, 2]
    assert example.targets == (False,) * 8 + (True,) * 5


@pytest.mark.parametrize("name", ["gpt2-base", "tinyllama-1.1b-3T", "mistral-7b-v0.1"])
def test_dolly_rows_under_real_tokenizers(shared, name) -> None:
    from amidkd.models import load_tokenizer

    tokenizer = load_tokenizer(shared / "tokenizers" / name)
    rows = load_rows(shared / "data" / "dolly_train.jsonl", max_rows=30)
    made = encoder(tokenizer, max_length=2048).encode(rows)
    assert len(made.examples) == 30
    for one, example in zip(rows, made.examples, strict=True):
        said = [t for t, mark in zip(example.tokens, example.targets, strict=True) if mark]
        assert said[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(said[:-1]).strip() == one.completion.strip()
        assert tokenizer.decode(example.tokens[: -len(said)], skip_special_tokens=True).strip() == one.prompt.strip()
