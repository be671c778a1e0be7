"""What is measured beside the loss: how far apart teacher and student are, how sure each is, what ω lets through."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amidkd.maths.divergence import Pair, divergence
from amidkd.maths.mixture import log_mixture_of
from amidkd.maths.objective import AnyObjective, Objective
from amidkd.maths.shapes import LogProbs

__all__ = ["Metrics", "first_with_assistant", "measure"]

_FORWARD, _REVERSE = divergence("kl"), divergence("reverse_kl")


class Metrics:
    """Sums over tokens, chunk by chunk, and their means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int] = {}

    def add(self, values: Mapping[str, Tensor], *, given: Tensor | None = None) -> None:
        """Add some tokens.

        Args:
            values: One value per token [n] by name, 0 where it is not given.
            given: Which of the tokens have one [n]; None: all.
        """
        for name, value in values.items():
            count = value.shape[0] if given is None else given.sum()
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().sum()
            self._counts[name] = self._counts.get(name, 0) + count

    def means(self, count: int, *, device: torch.device) -> dict[str, Tensor]:
        """The mean of each over the tokens that have it (0 where none has), and their number as ``tokens``."""
        found = {
            name: total / torch.as_tensor(self._counts[name], device=device).clamp(min=1)
            for name, total in self._sums.items()
        }
        return found | {"tokens": torch.tensor(count, device=device)}


@torch.no_grad()
def measure(objective: AnyObjective, *, teacher: Tensor | Sequence[Tensor], student: Tensor) -> dict[str, Tensor]:
    """What can be said of each token [n].

    ``kl_teacher_student``, ``kl_student_teacher``, ``entropy_teacher``, ``entropy_student``, ``top1_agreement``; and of
    the first term with an assistant ``entropy_assistant`` and ``responsibility`` Σ_v p(v) ω(v): the share of the
    teacher's mass that can move the student. Several teachers count as their normalised α-mixture.

    Args:
        objective: Names the assistant, and how several teachers are mixed.
        teacher: log p [n, V], or a list of such.
        student: log q [n, V].
    """
    first = first_with_assistant(objective)
    log_p = _one_teacher(first, teacher)
    pair = Pair.of(LogProbs.of(log_p), LogProbs.of(student))
    found = {
        "kl_teacher_student": _FORWARD.value(pair),
        "kl_student_teacher": _REVERSE.value(pair),
        "entropy_teacher": _entropy(pair.log_a, log_p),
        "entropy_student": _entropy(pair.log_b, student),
        "top1_agreement": (log_p.argmax(-1) == student.argmax(-1)).to(log_p.dtype),
    }
    del pair
    if "assistant" in first.between:
        mixture = first.seats(teacher=teacher, student=student, responsibility=True).mixture
        assert mixture is not None
        assistant = mixture.distribution
        found["entropy_assistant"] = _entropy(assistant.logs(), assistant.plain())
        found["responsibility"] = (torch.exp(log_p) * mixture.of_last()).sum(-1)
    return found


def first_with_assistant(objective: AnyObjective) -> Objective:
    """The term that the assistant's numbers are of: the first that has one; else the first."""
    if isinstance(objective, Objective):
        return objective
    terms = [term for _, term in objective.terms]
    return next((term for term in terms if "assistant" in term.between), terms[0])


def _one_teacher(objective: Objective, teacher: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(teacher, Tensor):
        return teacher
    return log_mixture_of(teacher, weights=objective.teacher_weights, alpha=objective.alpha)


def _entropy(logs: Tensor, log_p: Tensor) -> Tensor:
    """−Σ p log p, with the logarithm given as 0 where p is."""
    return -(torch.exp(log_p) * logs).sum(-1)
