"""One evaluation of one model under way: what is measured, in which order, from which passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from amidkd.config import EvaluationConfig
from amidkd.data import Example
from amidkd.evaluation.answers import Answers, Speaker, answer_scores
from amidkd.evaluation.forced import RowSums, Signal, sums_of_rows
from amidkd.evaluation.held_out import HeldOut
from amidkd.evaluation.statistics import Scores

__all__ = ["Evaluator", "measure"]

_FORCED = ("nll", "kl_teacher_student", "kl_student_teacher", "coverage", "top1_agreement", "acceptance")
_ALONG_SAMPLES = {
    "teacher_nll_of_samples": "nll_teacher",
    "kl_student_teacher_on_samples": "kl_student_teacher",
    "acceptance_on_samples": "acceptance",
}


@dataclass(frozen=True)
class Evaluator:
    """What an evaluation of one model works with.

    Args:
        held_out: The rows.
        config: Seeds, temperature, metrics.
        speaker: The model, answering.
        student: Its signal on a batch.
        teacher: The teacher's, or None.
        pad_id: Token id that fills a batch.
        device: Where the batches go.
        memory_mb: Room for temporaries over the vocabulary, MiB.
        bar: A progress bar that counts rows.
    """

    held_out: HeldOut
    config: EvaluationConfig
    speaker: Speaker
    student: Signal
    teacher: Signal | None
    pad_id: int
    device: torch.device
    memory_mb: float
    bar: Any

    def forced(self, examples: Sequence[Example | None]) -> RowSums:
        """Both models on given text."""
        return sums_of_rows(
            examples,
            student=self.student,
            teacher=self.teacher,
            pad_id=self.pad_id,
            vocab_size=self.speaker.vocab_size,
            batch_size=self.config.batch_size,
            device=self.device,
            epsilon=self.config.coverage_epsilon,
            bins=self.config.calibration_bins,
            memory_mb=self.memory_mb,
            progress=self.bar.update,
        )

    def answers(self, *, temperature: float, seed: int) -> Answers:
        """Answers to the rows with a prompt."""
        prompts = [self.held_out.prompts[place] for place in self.held_out.asked]
        return self.speaker.answer(
            [prompt for prompt in prompts if prompt is not None],
            temperature=temperature,
            seed=seed,
            progress=lambda rows, _tokens: self.bar.update(rows),
        )

    def along_samples(self, draws: Sequence[Answers]) -> dict[str, Scores]:
        """What the teacher says of what the student samples."""
        sums = [self.forced(self._said(draw)) for draw in draws]
        counts = np.stack([entry["tokens"] for entry in sums])
        axes = ("sampling seeds", "prompts")
        return {
            name: Scores(np.stack([entry[key] for entry in sums]), counts, axes) for name, key in _ALONG_SAMPLES.items()
        }

    def _said(self, draw: Answers) -> list[Example | None]:
        prompts = [self.held_out.prompts[place] or () for place in self.held_out.asked]
        return [
            Example((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer), row=place, origin="student")
            for place, prompt, answer in zip(self.held_out.asked, prompts, draw.tokens, strict=True)
        ]


def measure(evaluator: Evaluator) -> tuple[dict[str, Scores], Answers | None, tuple[Answers, ...]]:
    """Scores of every prompt by metric, greedy answers, and sampled ones.

    Args:
        evaluator: The evaluation.
    """
    held_out, config = evaluator.held_out, evaluator.config
    scores: dict[str, Scores] = {}
    if any(text is not None for text in held_out.texts):
        sums = evaluator.forced(held_out.texts)
        scores.update({name: Scores(sums[name], sums["tokens"]) for name in _FORCED if name in sums})
        scores["ece"] = Scores(sums["calibration"], sums["tokens"], formula="calibration")
    if not held_out.asked:
        return scores, None, ()
    references = [held_out.references[place] for place in held_out.asked]
    greedy = evaluator.answers(temperature=0.0, seed=0)
    draws = tuple(evaluator.answers(temperature=config.temperature, seed=seed) for seed in config.sampling_seeds)
    scores.update(answer_scores([greedy], references, "greedy", config.metrics))
    scores.update(answer_scores(draws, references, "sampled", config.metrics))
    if evaluator.teacher is not None:
        scores.update(evaluator.along_samples(draws))
    return scores, greedy, draws
