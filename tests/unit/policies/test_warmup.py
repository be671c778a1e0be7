"""Corrections: what is kept, who writes on, and what it is counted as."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from amidkd.config import KernelsConfig, WarmupPolicy
from amidkd.generation import Prompts
from amidkd.policies.warmup import CorrectingWriter, Correction, Likelihood
from amidkd.signals import Logits

VOCABULARY, EOS, PAD = 8, 1, 0


@dataclass
class FollowingTeacher:
    """Gives a token's successor 0.93, and each other 0.01."""

    vocab_size: int = VOCABULARY
    widths: list[int] = field(default_factory=list)

    def signal(self, sequences) -> Logits:
        self.widths.append(len(sequences.rows_B))
        before = sequences.tokens_BT[sequences.predicts_BT()]
        p = torch.full((len(before), VOCABULARY), 0.01)
        p[torch.arange(len(before)), (before + 1) % VOCABULARY] = 0.93
        return Logits(p.log())

    def fingerprint(self) -> str:
        return "following"


@dataclass
class Script:
    """Writes what it was told to, by stream, and keeps what it was asked."""

    said: dict[int, list[list[int]]]
    asked: list[Prompts] = field(default_factory=list)

    def __call__(self, prompts: Prompts, progress=None) -> list[list[int]]:
        self.asked.append(prompts)
        texts = [self.said[stream].pop(0) for stream in prompts.streams]
        return [text[:limit] for text, limit in zip(texts, prompts.limits, strict=True)]

    def update_weights(self, version: int) -> None:
        raise AssertionError("nothing is trained here")

    def close(self) -> None:
        self.asked.clear()


def likelihood(batch_size: int = 2) -> Likelihood:
    return Likelihood(FollowingTeacher(), torch.device("cpu"), PAD, batch_size, KernelsConfig())


def corrected(drafts, *, rounds, student=None, teacher=None, limits=None, threshold=0.05):
    notes: dict[int, Correction] = {}
    writers = {"student": Script(student or {}), "teacher": Script(teacher or {})}
    writer = CorrectingWriter(
        WarmupPolicy(rounds=rounds, reject_threshold=threshold),
        drafts=drafts,
        likelihood=likelihood(),
        eos_ids=[EOS],
        note=notes.update,
        **writers,
    )
    prompts = Prompts([[2, 3]] * len(drafts), limits or [6] * len(drafts), list(drafts), seed=7)
    return writer(prompts), notes, writers


def test_first_unlikely_token_of_each_text_from_where_it_is_asked() -> None:
    texts = [[4, 5, 6], [4, 6, 7], [4, 6, 2], [], [7]]
    found = likelihood().first_unlikely([[3]] * 5, texts, [0, 0, 2, 0, 0], 0.05)
    assert found == [None, 1, 2, None, 0]
    # 0.93 itself is rejected only above it.
    assert likelihood().first_unlikely([[3]], [[4]], [0], 0.92) == [None]
    assert likelihood().first_unlikely([[3]], [[4]], [0], 0.94) == [0]


def test_probabilities_are_those_of_a_log_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, VOCABULARY)

    class Fixed(FollowingTeacher):
        def signal(self, sequences) -> Logits:
            return Logits(logits)

    text = [5, 2, 7, 1, 3]
    expected = -logits.log_softmax(-1)[range(5), text]
    judge = Likelihood(Fixed(), torch.device("cpu"), PAD, 4, KernelsConfig())
    surprise = judge._surprise([_example([3], text)])
    torch.testing.assert_close(torch.tensor(surprise[0]), expected, rtol=1e-5, atol=1e-6)


def _example(prompt, text):
    from amidkd.data import Example

    return Example((*prompt, *text), (False,) * len(prompt) + (True,) * len(text), 0)


def test_one_round_keeps_what_comes_before_and_lets_the_teacher_write_to_the_end() -> None:
    texts, notes, writers = corrected(
        {0: [4, 5, 6, EOS], 1: [4, 7, 7, 7]}, rounds=1, teacher={0: [[7, 0, EOS]], 1: [[5, 6]]}
    )
    # EOS of the first draft is what the teacher finds unlikely there.
    assert texts == [[4, 5, 6, 7, 0, EOS], [4, 5, 6]]
    assert notes == {0: Correction(3, 1, 3), 1: Correction(1, 1, 2)}
    (asked,) = writers["teacher"].asked
    assert (asked.tokens, asked.limits) == ([[2, 3, 4, 5, 6], [2, 3, 4]], [3, 5])
    assert writers["student"].asked == []


def test_between_rounds_the_teacher_writes_one_token_and_the_student_goes_on() -> None:
    texts, notes, writers = corrected(
        {0: [7, 7], 1: [4, 5]},
        rounds=3,
        student={0: [[5, 2, 2], [7, 4]]},
        teacher={0: [[4, 4, 4], [6, 6], [0, EOS]]},
    )
    # Rejected: 7 at 0, then the student's 2 at 2, then its 4 at 4; the last time the teacher goes on itself.
    assert texts == [[4, 5, 6, 7, 0, EOS], [4, 5]]
    assert notes == {0: Correction(0, 3, 4), 1: Correction()}
    assert [asked.limits for asked in writers["teacher"].asked] == [[1], [1], [2]]
    assert [asked.limits for asked in writers["student"].asked] == [[5], [3]]
    seeds = [asked.seed for writer in writers.values() for asked in writer.asked]
    assert len(set(seeds)) == len(seeds), "each turn draws numbers of its own"


def test_what_the_teacher_samples_is_not_rejected() -> None:
    texts, notes, _ = corrected({0: [7]}, rounds=4, student={0: [[4]]}, teacher={0: [[3]]})
    # The teacher's own 3 after a 3 is as unlikely as the 7 was.
    assert texts == [[3, 4]]
    assert notes == {0: Correction(0, 1, 1)}


def test_an_end_that_the_teacher_writes_ends_the_text() -> None:
    texts, notes, writers = corrected({0: [4, 7]}, rounds=4, teacher={0: [[EOS]]})
    assert texts == [[4, EOS]]
    assert notes == {0: Correction(1, 1, 1)}
    assert writers["student"].asked == []


def test_texts_stay_within_their_limits() -> None:
    texts, _, writers = corrected({0: [4, 7, 7]}, rounds=2, teacher={0: [[5]]}, limits=[2])
    assert texts == [[4, 5]]
    assert writers["student"].asked == [], "there was no room to go on"


@pytest.mark.parametrize("threshold", [0.005, 0.05])
def test_every_token_of_the_students_that_is_kept_is_likely_enough(threshold) -> None:
    torch.manual_seed(1)
    drafts = {row: torch.randint(2, VOCABULARY, (5,)).tolist() for row in range(6)}
    texts, notes, _ = corrected(drafts, rounds=1, teacher={row: [[]] for row in drafts}, threshold=threshold)
    surprise = likelihood()._surprise([_example([2, 3], text) for text in texts if text])
    assert all(value <= -math.log(threshold) + 1e-6 for values in surprise for value in values)
    assert sum(one.rewrites for one in notes.values()) == (0 if threshold < 0.01 else 6)
