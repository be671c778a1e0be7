"""The student's text as rows to learn from: the one place where prompts and answers are put together."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

from amidkd.config import StudentSampling
from amidkd.data import Example, idle
from amidkd.errors import SettingError
from amidkd.generation import Generator, Prompts
from amidkd.policies.base import StepPlan, check_state

__all__ = ["Ahead", "Progress", "StudentWriter"]


Progress = Callable[[int, int], None]

_MANY = 2000
"""Answers written at once from which on somebody may wonder what takes so long."""


@final
class StudentWriter:
    """Has the student answer the prompts of rows.

    Text depends on the seed, the step and the place of the row, not on the process or the batch that it is made in.

    Args:
        generator: What runs the student.
        config: How it writes.
        examples: The rows, by place.
        prompts: Token ids of each prompt, by ``Example.row``.
        max_length: Longest row, prompt and answer together.
        counter: Makes what is told of progress where many answers are written at once, from their number; or None.

    Raises:
        SettingError: A row whose prompt is not there, or leaves no room for an answer.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        config: StudentSampling,
        examples: Sequence[Example],
        prompts: Mapping[int, Sequence[int]],
        max_length: int,
        counter: Callable[[int], AbstractContextManager[Progress]] | None = None,
    ) -> None:
        self._generator, self._config, self._examples, self._prompts = generator, config, examples, prompts
        self._max_length, self._counter = max_length, counter
        self.seconds = 0.0
        for example in examples:
            if example.row not in prompts:
                raise SettingError(
                    f"policy: row {example.row} has no prompt to answer; use rows with `prompt` or `messages`"
                )
            if len(prompts[example.row]) >= max_length:
                raise SettingError(
                    f"policy: the prompt of row {example.row} has {len(prompts[example.row])} tokens, which leaves no "
                    f"room for an answer within data.max_length = {max_length}; raise it, or lower "
                    "data.max_prompt_length"
                )

    @property
    def examples(self) -> Sequence[Example]:
        """The rows, by place."""
        return self._examples

    def write(self, steps: Sequence[list[list[int]]], *, step: int) -> list[list[list[Example]]]:
        """Write for the rows of some optimizer steps at once, with the weights as they are.

        Args:
            steps: Places of the rows: a list for each optimizer step, in it one for each forward pass.
            step: Optimizer steps made.

        Returns:
            Rows of the student's text in the same shape; an idle row for a place below 0.

        Raises:
            GenerationError: The engine is gone.
        """
        wanted = [
            (offset * len(self._examples) + place, place)
            for offset, passes in enumerate(steps)
            for places in passes
            for place in places
            if place >= 0
        ]
        # An answer of this moment must not be that of another moment, whatever the weights.
        prompts = Prompts(
            tokens=[self._prompts[self._examples[place].row] for _, place in wanted],
            limits=[self._limit(place) for _, place in wanted],
            streams=[stream for stream, _ in wanted],
            seed=_seed(self._config.seed, step),
        )
        began = time.perf_counter()
        self._generator.update_weights(step)
        answers = iter(self._answers(prompts))
        self.seconds += time.perf_counter() - began
        return [
            [
                [idle(self._examples[~place]) if place < 0 else self._row(place, next(answers)) for place in places]
                for places in passes
            ]
            for passes in steps
        ]

    def _answers(self, prompts: Prompts) -> list[list[int]]:
        if not prompts.tokens:
            return []
        if self._counter is None or len(prompts.tokens) < _MANY:
            return self._generator(prompts)
        with self._counter(len(prompts.tokens)) as progress:
            return self._generator(prompts, progress)

    def _limit(self, place: int) -> int:
        prompt = self._prompts[self._examples[place].row]
        return min(self._config.max_new_tokens, self._max_length - len(prompt))

    def _row(self, place: int, answer: Sequence[int]) -> Example:
        row = self._examples[place].row
        prompt = self._prompts[row]
        targets = (False,) * len(prompt) + (True,) * len(answer)
        return Example((*prompt, *answer), targets, row, "student")


@final
class Ahead:
    """The student's text for this step and for later ones, written at once.

    Args:
        writer: Writes it.
    """

    def __init__(self, writer: StudentWriter) -> None:
        self._writer = writer
        self._written: dict[int, list[list[Example]]] = {}
        self._written_at = 0

    def take(self, plan: StepPlan, steps: Callable[[], Sequence[int]]) -> list[list[Example]]:
        """The rows of each forward pass of a step.

        Args:
            plan: The step.
            steps: For which steps to write where nothing is written for this one; it is the first of them.
        """
        if plan.number not in self._written:
            chosen = steps()
            written = self._writer.write([plan.places(step) for step in chosen], step=plan.number)
            self._written = dict(zip(chosen, written, strict=True))
            self._written_at = plan.number
        return self._written.pop(plan.number)

    def staleness(self, plan: StepPlan) -> int:
        """How many optimizer steps older than the weights the text of a step is."""
        return plan.number - self._written_at

    def state(self) -> dict[str, Any]:
        """Text that is written and not yet learnt from."""
        return {"written": dict(self._written), "written_at": self._written_at}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            SettingError: It is another policy's.
        """
        check_state(state, ["written", "written_at"])
        self._written, self._written_at = dict(state["written"]), state["written_at"]


def _seed(seed: int, step: int) -> int:
    """A seed for each step, unrelated to its neighbours' and to those of other seeds."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{step}".encode()).digest()[:6], "big")
