"""The gradient in closed form: what the kernels compute, without an autograd graph over the vocabulary.

With H = ∂D/∂log r (where the assistant is a or b) and G = ∂D/∂log q (where the student is), each taken as if free,

    A = G + ω (H − r ΣH),    dL/dz = A − q ΣA,

z the student's logits, q = softmax(z), ω the responsibility. Of KL(p‖r), for example, A = ω (r − p).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.maths.divergence import Divergence, Pair, UserDivergence
from amidkd.maths.mixture import responsibility
from amidkd.maths.objective import AnyObjective, Objective, WeightedSum

__all__ = ["responsibility", "value_and_gradient"]


@torch.no_grad()
def value_and_gradient(
    objective: AnyObjective, *, teacher: Tensor | Sequence[Tensor], student: Tensor
) -> tuple[Tensor, Tensor]:
    """The value per token and its gradient with respect to the student's logits.

    Args:
        objective: Any objective or weighted sum; a divergence of your own is differentiated by autograd in log a and
            log b alone.
        teacher: log p [*N, V], or a list of such, normalised; −inf where masked.
        student: log q = log_softmax(z) [*N, V].

    Returns:
        Value [*N], and dL/dz [*N, V]: 0 where the student is masked, and 0 in rows whose value is infinite.

    Raises:
        SettingError: As the objective itself.

    Example:
        >>> p, z = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.0, 0.0]])
        >>> forward_kl = Objective(between="teacher||student")
        >>> value_and_gradient(forward_kl, teacher=p.log(), student=z.log_softmax(-1))
        (tensor([0.3681]), tensor([[-0.4000,  0.4000]]))

    Source: AMiD (arXiv 2510.15982), gradient of the assistant; the projection is that of softmax.
    """
    if isinstance(objective, Objective):
        return _one(objective, teacher, student)
    assert isinstance(objective, WeightedSum)
    value, slope = student.new_zeros(student.shape[:-1]), torch.zeros_like(student)
    for weight, term in objective.terms:
        if weight != 0:
            part, part_slope = _one(term, teacher, student)
            value, slope = value + weight * part, slope + weight * part_slope
    return value, slope


def _one(objective: Objective, teacher: Tensor | Sequence[Tensor], student: Tensor) -> tuple[Tensor, Tensor]:
    first, second = objective.between.split("||")
    learns = "assistant" in (first, second) and not objective.detach_assistant
    pair, omega = _prepare(objective, teacher, student, learns=learns)
    value, to_a, to_b = _partials(objective.divergence, pair)
    log_r = pair.log_a if first == "assistant" else pair.log_b
    live = pair.both | (pair.only_a if first == "assistant" else pair.only_b)
    del pair
    to = {first: to_a, second: to_b}
    slope = to.get("student")
    if learns:
        assert omega is not None
        through = to["assistant"]
        through = omega * (through - torch.where(live, log_r.exp(), 0.0) * through.sum(-1, keepdim=True))
        slope = through if slope is None else slope + through
    assert slope is not None
    return value, slope - torch.exp(student).to(slope.dtype) * slope.sum(-1, keepdim=True)


def _prepare(
    objective: Objective, teacher: Tensor | Sequence[Tensor], student: Tensor, *, learns: bool
) -> tuple[Pair, Tensor | None]:
    """The pair that is compared, and ω where it is wanted; all else is let go."""
    seats = objective.seats(teacher=teacher, student=student, responsibility=learns)
    return Pair.of(seats.a, seats.b), None if seats.mixture is None else seats.mixture.omega


def _partials(divergence: Divergence | UserDivergence, pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """D [*N], ∂D/∂log a and ∂D/∂log b [*N, V]."""
    if isinstance(divergence, Divergence):
        return divergence.value(pair), *divergence.slopes(pair)
    has_a, has_b = pair.both | pair.only_a, pair.both | pair.only_b
    with torch.enable_grad():
        log_a = torch.where(has_a, pair.log_a, -torch.inf).requires_grad_()
        log_b = torch.where(has_b, pair.log_b, -torch.inf).requires_grad_()
        value = divergence(log_a, log_b)
        if value.shape != log_a.shape[:-1] or not value.requires_grad:
            raise SettingError(
                "a divergence of your own must return one value per token, differentiable in log a and log b: "
                f"expected shape {tuple(log_a.shape[:-1])}, got {tuple(value.shape)}"
            )
        to_a, to_b = torch.autograd.grad(value.sum(), (log_a, log_b), allow_unused=True, materialize_grads=True)
    value = value.detach()
    finite = (value != torch.inf).unsqueeze(-1)
    return value, torch.where(has_a & finite, to_a, 0.0), torch.where(has_b & finite, to_b, 0.0)
