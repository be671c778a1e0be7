"""What the student writes becomes rows like those of the data: same positions, same labels, no row twice."""

from contextlib import contextmanager

import pytest
import torch
from plans import Scribe, examples, plan, room

from amidkd.config import AdaptivePolicy, ContrastivePolicy, DataConfig, MixedPolicy, OnPolicy, StudentSampling
from amidkd.data import Encoder, Row, collate
from amidkd.errors import SettingError
from amidkd.generation import GenerationError
from amidkd.generation.transformers import TransformersGenerator
from amidkd.policies import PolicyRoom, make_policy
from amidkd.policies.writing import StudentWriter
from tiny_world import make_model, make_tokenizer

SAMPLING = StudentSampling(max_new_tokens=6, temperature=0)


def test_a_batch_by_hand_and_by_the_policy() -> None:
    """The same answer, once as data and once written by the model: tensors, labels and predictions agree."""
    tokenizer, model = make_tokenizer(), make_model(width=16, layers=1, seed=4, padded_vocab=24)
    encoder = Encoder(tokenizer, DataConfig(train="unused", prompt_template="<s> {prompt} <sep>", max_length=32))
    rows = [Row(0, "a", prompt="red cat"), Row(1, "b", prompt="blue dog sits here")]
    prompts = {row.index: tuple(tokens) for row in rows if (tokens := encoder.prompt_tokens(row))}
    bare = [encoder.example_from_tokens(n, tokens, [2], "data") for n, tokens in prompts.items()]

    # Whatever the model says second ends its answers, so that EOS is a token that it really writes.
    free = TransformersGenerator(SAMPLING, model=model, eos_ids=[], pad_id=0, vocab_size=17)
    writer = StudentWriter(free, config=SAMPLING, examples=bare, prompts=prompts, max_length=32)
    eos = writer.write([[[0, 1]]], step=0)[0][0][0].tokens[len(prompts[0]) + 1]
    generator = TransformersGenerator(SAMPLING, model=model, eos_ids=[eos], pad_id=0, vocab_size=17)
    writer = StudentWriter(generator, config=SAMPLING, examples=bare, prompts=prompts, max_length=32)
    by_policy = collate(writer.write([[[0, 1]]], step=0)[0][0], pad_id=0)

    by_hand = []
    for row, prompt in prompts.items():
        tokens = list(prompt)
        while len(tokens) < len(prompt) + 6:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokens])).logits[0, -1, :17]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == eos:
                break
        by_hand.append(encoder.example_from_tokens(row, prompt, tokens[len(prompt) :], "student"))
    expected = collate(by_hand, pad_id=0)
    for name, tensor in expected.as_batch().items():
        assert torch.equal(by_policy.as_batch()[name], tensor), name
    assert torch.equal(by_policy.labels_N(), expected.labels_N())

    # The first token of the answer is predicted at the prompt's last position; EOS is predicted, and predicts nothing.
    first = by_policy.predicts_BT()[0].nonzero()[:, 0]
    assert first[0] == len(prompts[0]) - 1
    ended = by_hand[0].tokens
    assert ended[-1] == eos
    assert first[-1] == len(ended) - 2
    assert by_policy.labels_N()[len(first) - 1] == eos


@pytest.mark.parametrize(
    "settings",
    [
        OnPolicy(),
        OnPolicy(steps_per_generation=3),
        MixedPolicy(on_policy_fraction=0.6),
        ContrastivePolicy(),
        ContrastivePolicy(refresh="step"),
    ],
)
def test_two_ranks_write_what_one_writes(settings) -> None:
    one = make_policy(settings, room())
    two = [make_policy(settings, room(rank=rank, world=2)) for rank in range(2)]
    for step in range(6):
        whole = one.choose(plan(step, batch=4))
        halves = [policy.choose(plan(step, batch=2, rank=rank, world=2)) for rank, policy in enumerate(two)]
        if whole is None:
            assert halves == [None, None]
            continue
        together = [row for half in halves for rows in half for row in rows if row.row >= 0]
        assert sorted(map(repr, together)) == sorted(repr(row) for rows in whole for row in rows)


def test_idle_rows_stay_idle() -> None:
    """Nine rows over two ranks of two: the last batch leaves the second rank without a row."""
    scribe = Scribe()
    policy = make_policy(OnPolicy(), room(scribe, count=9))
    chosen = policy.choose(plan(2, passes=1, rank=1, world=2, count=9))
    assert [len(rows) for rows in chosen] == [1]
    assert chosen[0][0].row < 0
    assert not any(chosen[0][0].targets)
    assert scribe.asked == [], "there was nothing to write"


def test_an_answer_has_the_room_that_is_left() -> None:
    scribe = Scribe()
    policy = make_policy(OnPolicy(generation=StudentSampling(max_new_tokens=50)), room(scribe, max_length=4))
    rows = policy.choose(plan(0))
    assert {limit for prompts in scribe.asked for limit in prompts.limits} == {2}
    assert all(len(row.tokens) == 4 for part in rows for row in part)
    with pytest.raises(SettingError, match=r"has 2 tokens.*data.max_length = 2; raise it"):
        make_policy(OnPolicy(), room(max_length=2))
    with pytest.raises(SettingError, match=r"row 0 has no prompt to answer; use rows with"):
        make_policy(OnPolicy(), room(prompts={}))


def test_text_is_written_once_for_several_steps() -> None:
    scribe = Scribe()
    policy = make_policy(OnPolicy(steps_per_generation=3), room(scribe))
    staleness = []
    for step in range(7):
        chosen = policy.choose(plan(step))
        staleness.append(policy.report()["staleness"])
        # Each step learns from its own prompts, whoever wrote when.
        places = plan(step).places(step)
        assert [[row.row for row in rows] for rows in chosen] == places
    assert staleness == [0, 1, 2, 0, 1, 2, 0]
    assert len(scribe.asked) == 3
    streams = [stream for prompts in scribe.asked[:1] for stream in prompts.streams]
    assert len(set(streams)) == len(streams), "a row that comes again within the span is written anew"


def test_the_fraction_of_steps() -> None:
    policy = make_policy(MixedPolicy(on_policy_fraction=0.3), room())
    own = [policy.choose(plan(step, total=2000)) is not None for step in range(2000)]
    assert 0.26 < sum(own) / len(own) < 0.34
    for fraction, expected in ((0.0, {True}), (1.0, {False})):
        policy = make_policy(MixedPolicy(on_policy_fraction=fraction), room())
        assert {policy.choose(plan(step)) is None for step in range(12)} == expected


def test_contrastive_rows_come_in_pairs() -> None:
    scribe = Scribe()
    policy = make_policy(ContrastivePolicy(), room(scribe))
    for step in range(6):
        for rows in policy.choose(plan(step)):
            half = len(rows) // 2
            assert [row.row for row in rows[:half]] == [row.row for row in rows[half:]]
            assert {row.origin for row in rows[:half]} == {"data"}
            assert {row.origin for row in rows[half:]} == {"student"}
    # Ten rows in steps of four: an epoch has three steps, and is written at its start.
    assert len(scribe.asked) == 2
    assert [len(prompts.tokens) for prompts in scribe.asked] == [10, 10]


@pytest.mark.parametrize(
    "settings",
    [
        OnPolicy(steps_per_generation=3),
        MixedPolicy(steps_per_generation=4),
        ContrastivePolicy(),
        AdaptivePolicy(initial_threshold=0.8, capacity=4, validation_steps=2, tolerance=0.0, replay_ratio="constant"),
    ],
)
def test_resumed_anywhere_it_goes_on_alike(settings) -> None:
    losses = [1.0, 1.1, 1.2, 1.0, 1.4, 1.5, 1.3, 1.2, 1.9, 1.0, 1.0, 1.0]
    whole = make_policy(settings, room())
    expected = [whole.choose(plan(step, losses=losses)) for step in range(12)]
    for stop in (1, 4, 8):
        first, second = make_policy(settings, room()), make_policy(settings, room())
        for step in range(stop):
            first.choose(plan(step, losses=losses))
        saved = first.state()
        first.choose(plan(stop, losses=losses))
        second.load_state(saved)
        assert [second.choose(plan(step, losses=losses)) for step in range(stop, 12)] == expected[stop:]
        assert second.state() == whole.state()


def test_a_failed_step_can_be_asked_for_again() -> None:
    """What the policy gave as its state before is not changed by the step that failed."""
    losses = [float(step % 2) for step in range(12)]
    settings = AdaptivePolicy(initial_threshold=1.0, capacity=8, validation_steps=1, tolerance=0.0)
    scribe, whole = Scribe(), make_policy(settings, room())
    policy = make_policy(settings, room(scribe))
    for step in range(3):
        assert policy.choose(plan(step, losses=losses)) == whole.choose(plan(step, losses=losses))
    before, scribe.fails = policy.state(), True
    with pytest.raises(GenerationError):
        policy.choose(plan(3, losses=losses))
    policy.load_state(before)
    scribe.fails = False
    for step in range(3, 6):
        assert policy.choose(plan(step, losses=losses)) == whole.choose(plan(step, losses=losses))


def test_long_writing_is_told_of() -> None:
    """An epoch at once can take hours; a step of a few rows is nobody's business."""
    told: list[object] = []

    @contextmanager
    def counter(total: int):
        told.append(total)
        yield lambda answers, tokens: told.append((answers, tokens))

    policy = make_policy(ContrastivePolicy(), room(Telling(), count=2100, counter=counter))
    policy.choose(plan(0, total=600, count=2100))
    assert told == [2100, (2100, 6300)]
    policy = make_policy(OnPolicy(), room(Telling(), count=2100, counter=counter))
    policy.choose(plan(0, total=600, count=2100))
    assert len(told) == 2


class Telling(Scribe):
    """A scribe that says how far it is."""

    def __call__(self, prompts, progress=None):
        answers = super().__call__(prompts)
        if progress is not None:
            progress(len(answers), sum(map(len, answers)))
        return answers


def test_examples_keep_their_places() -> None:
    made = room()
    assert isinstance(made, PolicyRoom)
    assert list(made.examples) == examples()
