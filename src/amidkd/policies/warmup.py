"""Warmup-Distill's corrections: the student's text as far as the teacher finds it likely, and the teacher's from there.

Source: Sun et al., "Warmup-Distill", arXiv 2502.11766.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from amidkd.config import KernelsConfig, WarmupPolicy
from amidkd.data import Example, collate
from amidkd.generation import Generator, Prompts
from amidkd.kernels import distillation_loss
from amidkd.teachers import Teacher

__all__ = ["CorrectingWriter", "Correction", "Likelihood"]


@dataclass(frozen=True)
class Correction:
    """What was done to one text.

    Args:
        position: Place in the answer of the first token that was rejected, from 0; −1: none was.
        rewrites: How often the teacher wrote.
        tokens: How many tokens it wrote.
    """

    position: int = -1
    rewrites: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Likelihood:
    """What the teacher gives to the tokens of texts, at temperature 1.

    Args:
        teacher: The teacher.
        device: Where it is.
        pad_id: Id that fills batches.
        batch_size: Texts in a forward pass.
        kernels: Backend and memory of the pass over the vocabulary.
    """

    teacher: Teacher
    device: torch.device
    pad_id: int
    batch_size: int
    kernels: KernelsConfig

    def first_unlikely(
        self,
        prompts: Sequence[Sequence[int]],
        texts: Sequence[Sequence[int]],
        starts: Sequence[int],
        threshold: float,
    ) -> list[int | None]:
        """The first token of each text to which the teacher gives less than a threshold; None: there is none.

        Args:
            prompts: Ids that each text follows, at least one.
            texts: Ids of each text.
            starts: Where to look from, in each text.
            threshold: A probability in (0, 1).
        """
        found: list[int | None] = [None] * len(texts)
        places = [place for place, text in enumerate(texts) if starts[place] < len(text)]
        places.sort(key=lambda place: len(prompts[place]) + len(texts[place]))
        for begin in range(0, len(places), self.batch_size):
            batch = places[begin : begin + self.batch_size]
            examples = []
            for place in batch:
                known, text = len(prompts[place]) + starts[place], texts[place]
                marks = (False,) * known + (True,) * (len(text) - starts[place])
                examples.append(Example((*prompts[place], *text), marks, place))
            surprise = self._surprise(examples)
            for place, values in zip(batch, surprise, strict=True):
                unlikely = [where for where, value in enumerate(values) if value > -math.log(threshold)]
                found[place] = starts[place] + unlikely[0] if unlikely else None
        return found

    @torch.no_grad()
    def _surprise(self, examples: Sequence[Example]) -> list[list[float]]:
        """−log p of the supervised tokens of each example."""
        sequences = collate(examples, pad_id=self.pad_id).to(self.device)
        out = distillation_loss(
            student=self.teacher.signal(sequences),  # type: ignore[arg-type]
            labels=sequences.labels_N(),
            cross_entropy_weight=1.0,
            reduction="none",
            vocab_size=self.teacher.vocab_size,
            backend=self.kernels.backend,
            memory_mb=self.kernels.memory_mb,
        )
        return [part.tolist() for part in out.loss.split([example.token_count() for example in examples])]


@final
class CorrectingWriter:
    """Corrects the student's drafts: a :class:`~amidkd.generation.Generator` of corrected text.

    In each round the teacher writes one token in place of the first that it finds unlikely, and the student goes on
    from there; in the last round the teacher writes to the end. So every token of the student's that is kept has at
    least the probability ``reject_threshold``; what the teacher itself samples is never rejected.

    Args:
        config: Threshold and rounds.
        drafts: The student's text to each prompt, by ``Prompts.streams``.
        student: Writes as the student.
        teacher: Writes as the teacher.
        likelihood: What the teacher finds likely.
        eos_ids: Ids that end an answer.
        note: Takes what was done, by stream, before the text is handed out.
    """

    def __init__(
        self,
        config: WarmupPolicy,
        *,
        drafts: Mapping[int, Sequence[int]],
        student: Generator,
        teacher: Generator,
        likelihood: Likelihood,
        eos_ids: Sequence[int],
        note: Callable[[Mapping[int, Correction]], None],
    ) -> None:
        self._config, self._drafts, self._likelihood = config, drafts, likelihood
        self._student, self._teacher = student, teacher
        self._eos_ids, self._note = frozenset(eos_ids), note

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        """The corrected texts, in the prompts' order."""
        texts = [
            list(self._drafts[stream])[:limit] for stream, limit in zip(prompts.streams, prompts.limits, strict=True)
        ]
        done = [Correction() for _ in texts]
        starts = [0] * len(texts)
        open_places = list(range(len(texts)))
        for number in range(1, self._config.rounds + 1):
            cuts = self._cuts(prompts, texts, starts, open_places)
            open_places = sorted(cuts)
            if not cuts:
                break
            for place, cut in cuts.items():
                del texts[place][cut:]
            last = number == self._config.rounds
            written = self._continued(
                self._teacher, prompts, texts, open_places, None if last else 1, f"teacher {number}"
            )
            for place, ids in written.items():
                was = done[place]
                first = cuts[place] if was.position < 0 else was.position
                done[place] = Correction(first, was.rewrites + 1, was.tokens + len(ids))
                texts[place] += ids
                starts[place] = len(texts[place])
            if not last:
                for place, ids in self._continued(
                    self._student,
                    prompts,
                    texts,
                    self._unfinished(prompts, texts, open_places),
                    None,
                    f"student {number}",
                ).items():
                    texts[place] += ids
        self._note(dict(zip(prompts.streams, done, strict=True)))
        if progress is not None:
            progress(len(texts), sum(map(len, texts)))
        return texts

    def update_weights(self, version: int) -> None:
        """Write with both models as they are now."""
        self._student.update_weights(version)
        self._teacher.update_weights(version)

    def close(self) -> None:
        """Let go of both engines."""
        self._student.close()
        self._teacher.close()

    def _cuts(
        self, prompts: Prompts, texts: Sequence[Sequence[int]], starts: Sequence[int], places: Sequence[int]
    ) -> dict[int, int]:
        found = self._likelihood.first_unlikely(
            [prompts.tokens[place] for place in places],
            [texts[place] for place in places],
            [starts[place] for place in places],
            self._config.reject_threshold,
        )
        return {place: cut for place, cut in zip(places, found, strict=True) if cut is not None}

    def _unfinished(self, prompts: Prompts, texts: Sequence[Sequence[int]], places: Sequence[int]) -> list[int]:
        return [
            place
            for place in places
            if texts[place][-1] not in self._eos_ids and len(texts[place]) < prompts.limits[place]
        ]

    def _continued(
        self,
        writer: Generator,
        prompts: Prompts,
        texts: Sequence[Sequence[int]],
        places: Sequence[int],
        most: int | None,
        turn: str,
    ) -> dict[int, list[int]]:
        """What a writer adds to some texts; each turn has random numbers of its own."""
        if not places:
            return {}
        rooms = [prompts.limits[place] - len(texts[place]) for place in places]
        answers = writer(
            Prompts(
                tokens=[[*prompts.tokens[place], *texts[place]] for place in places],
                limits=[room if most is None else min(room, most) for room in rooms],
                streams=[prompts.streams[place] for place in places],
                seed=_seed(prompts.seed, turn),
            )
        )
        return {place: list(ids) for place, ids in zip(places, answers, strict=True)}


def _seed(seed: int, turn: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{turn}".encode()).digest()[:4], "big")
