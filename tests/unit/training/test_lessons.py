"""What each policy learns from, and what is refused before work starts."""

import json
from typing import Any

import pytest
from tiny import byte_tokenizer, tiny_gpt2

from amidkd.config import RunConfig, parse
from amidkd.data import Encoder, Example
from amidkd.errors import SettingError
from amidkd.training.lessons import Material, check_room, gather_lessons, read_rows, rows_to_answer

TALK = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def half(run_tree) -> dict[str, Any]:
    """22 rows, 11 of them with a label; no warm start."""
    run_tree["data"]["label_fraction"] = 0.5
    return run_tree


def read(tree: dict[str, Any], policy: Any) -> tuple[RunConfig, Material]:
    config = parse({**tree, "policy": policy})
    return config, read_rows(config, Encoder(byte_tokenizer(), config.data))


def answer(material: Material, rows: list[Any], origin: Any = "teacher") -> list[Example]:
    prompts = [material.prompts.get(row.index, (7,)) for row in rows]
    return [
        Example((*p, 9, 1), (False,) * len(p) + (True, True), row.index, origin)
        for p, row in zip(prompts, rows, strict=True)
    ]


def test_dataset_learns_from_labels_and_answers(half) -> None:
    config, material = read(half, "dataset")
    asked = rows_to_answer(config, material, "distill")
    assert len(asked) == 11
    assert not any(row.labelled for row in asked)
    lessons = gather_lessons(config, material, answer(material, asked), verb="distill")
    assert [example.row for example in lessons.examples] == list(range(22))
    assert lessons.warm is lessons.examples
    assert lessons.counts == {"labelled": 11, "answered by the teacher": 11}
    half["data"]["unlabelled"] = "drop"
    config, material = read(half, "dataset")
    assert rows_to_answer(config, material, "distill") == []
    assert len(gather_lessons(config, material, None, verb="distill").examples) == 11


@pytest.mark.parametrize("kind", ["on_policy", "warmup"])
def test_where_the_student_writes_all_text_the_examples_are_every_prompt(half, kind) -> None:
    config, material = read(half, kind)
    assert rows_to_answer(config, material, "distill") == [], "no answer is needed where no warm start runs"
    lessons = gather_lessons(config, material, None, verb="distill")
    assert [example.row for example in lessons.examples] == list(range(22))
    assert all(example.tokens == lessons.prompts[example.row] for example in lessons.examples)
    assert not any(example.token_count() for example in lessons.examples)
    assert lessons.warm == []
    assert lessons.counts["prompts"] == 22


def test_a_warm_start_before_on_policy_trains_on_the_rows_with_text(half) -> None:
    half["student"]["warm_start"] = True
    config, material = read(half, "on_policy")
    asked = rows_to_answer(config, material, "distill")
    assert len(asked) == 11
    lessons = gather_lessons(config, material, answer(material, asked), verb="distill")
    assert (len(lessons.examples), len(lessons.warm)) == (22, 22)
    assert all(example.token_count() for example in lessons.warm)
    assert {example.origin for example in lessons.warm} == {"data", "teacher"}
    half["data"]["unlabelled"] = "drop"
    config, material = read(half, "on_policy")
    assert rows_to_answer(config, material, "distill") == []
    lessons = gather_lessons(config, material, None, verb="distill")
    assert (len(lessons.examples), len(lessons.warm)) == (22, 11)
    half["data"]["label_fraction"] = 0.0
    config, material = read(half, "on_policy")
    with pytest.raises(SettingError, match=r"student\.warm_start: no row has text to start from"):
        gather_lessons(config, material, None, verb="distill")


@pytest.mark.parametrize("kind", ["mixed", "adaptive"])
def test_mixed_text_has_the_datas_rows_and_their_prompts(half, kind) -> None:
    config, material = read(half, kind)
    asked = rows_to_answer(config, material, "distill")
    assert len(asked) == 11
    lessons = gather_lessons(config, material, answer(material, asked), verb="distill")
    assert lessons.warm is lessons.examples
    for example in lessons.examples:
        prompt = lessons.prompts[example.row]
        assert example.tokens[: len(prompt)] == prompt
        assert not any(example.targets[: len(prompt)])


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        ("contrastive", 22),
        ({"kind": "contrastive", "teacher_text": "data"}, 11),
        ("sequence_level", 22),
        ({"kind": "sequence_level", "writer": "student"}, 22),
    ],
)
def test_whose_text_replaces_labels(half, policy, asked) -> None:
    config, material = read(half, policy)
    rows = rows_to_answer(config, material, "distill")
    assert len(rows) == asked
    origin = "student" if "student" in str(policy) else "teacher"
    lessons = gather_lessons(config, material, answer(material, rows, origin), verb="distill")
    assert [example.row for example in lessons.examples] == list(range(22))
    assert [example.origin for example in lessons.examples].count(origin) == asked
    assert lessons.counts[f"answered by the {origin}"] == asked
    assert set(lessons.prompts) == set(range(22))


def test_generate_answers_what_the_run_would_or_all_rows_where_all_have_a_label(half) -> None:
    wanted = {"dataset": 11, "on_policy": 11, "mixed": 11, "sequence_level": 22, "contrastive": 22}
    for policy, asked in wanted.items():
        config, material = read(half, policy)
        assert len(rows_to_answer(config, material, "generate")) == asked
    half["data"]["label_fraction"] = 1.0
    for policy in ("dataset", "on_policy", "mixed"):
        config, material = read(half, policy)
        assert len(rows_to_answer(config, material, "generate")) == 22


@pytest.mark.parametrize("kind", ["on_policy", "mixed", "adaptive", "sequence_level", "contrastive", "warmup"])
def test_a_data_set_without_prompts_is_refused(run_tree, world, kind) -> None:
    run_tree["data"]["train"] = str(world / "corpus.jsonl")
    with pytest.raises(SettingError, match=rf"corpus\.jsonl, line 1: a data set without prompts.*kind: {kind} needs"):
        read(run_tree, kind)


def test_prompts_that_leave_no_room_are_refused(run_tree) -> None:
    student, teacher = tiny_gpt2(0), tiny_gpt2(1)
    run_tree["data"]["max_length"] = 100
    policy = {"kind": "on_policy", "generation": {"max_new_tokens": 59}}
    config, material = read(run_tree, policy)
    with pytest.raises(SettingError, match=r"line 11: the prompt has 6 .* up to 59 .* student's context of 64; lower"):
        check_room(config, material, {"student": student})
    student.config.n_positions = 200
    with pytest.raises(SettingError, match="the teacher's context of 64"):
        check_room(config, material, {"student": student, "teacher": teacher})
    # data.max_length cuts the answers' limit, so that everything fits.
    run_tree["data"]["max_length"] = 64
    config, material = read(run_tree, policy)
    check_room(config, material, {"student": student, "teacher": teacher})
    run_tree["data"]["max_length"] = 100
    config, material = read(run_tree, "dataset")
    check_room(config, material, {"teacher": teacher})


def test_a_prompt_that_fills_max_length_is_refused(run_tree) -> None:
    run_tree["data"]["max_length"] = 6
    with pytest.raises(SettingError, match=r"line 11: the prompt has 6 tokens, over the limit of 5"):
        read(run_tree, "on_policy")
    run_tree["data"]["long_prompts"] = "drop"
    config, material = read(run_tree, "on_policy")
    lessons = gather_lessons(config, material, None, verb="distill")
    assert [example.row for example in lessons.examples] == list(range(10))
    assert lessons.counts["prompt over the limit"] == 12


def test_the_last_prompt_of_a_conversation_counts(run_tree, tmp_path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": [*TALK, *TALK]}) + "\n")
    run_tree["data"] |= {"train": str(path), "max_length": 12, "max_prompt_length": 4, "long_prompts": "drop"}
    config = parse({**run_tree, "policy": "mixed"})
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    material = read_rows(config, Encoder(tokenizer, config.data))
    assert len(material.encoded.examples) == 2
    lessons = gather_lessons(config, material, None, verb="distill")
    assert [example.row for example in lessons.examples] == [0]
    assert lessons.counts == {"labelled": 1, "last prompt over the limit": 1}
