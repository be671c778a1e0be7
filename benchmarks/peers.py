"""Everyone who computes the same: this package's backends, the textbook form with autograd, PyTorch, TRL and Liger.

Peers are imported when they are asked for, and say why they cannot take part.
"""

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from names import ALPHAS, LAM, OWN, alpha_case, amid_linear
from timing import reason
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective
from amidkd.maths.objective import AnyObjective
from amidkd.signals import Hidden, Logits

__all__ = [
    "Heads",
    "LinearMethod",
    "Method",
    "Missing",
    "OwnBackends",
    "available",
    "cases",
    "given_hidden",
    "given_logits",
    "objective_of",
    "oracle",
    "own_backends",
    "textbook",
    "trl_trainer",
]


@dataclass(frozen=True)
class Missing:
    """A peer that cannot take part, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Method:
    """A loss of student logits [N, V] and teacher logits [N, V].

    Args:
        name: Whose.
        values: The loss of each token [N].
        loss: Their mean, with a gradient for the student.
    """

    name: str
    values: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Heads:
    """Hidden states [N, H] and heads [V, H] of both sides; ``states`` and ``weight`` want gradients."""

    states: Tensor
    weight: Tensor
    teacher_states: Tensor
    teacher_weight: Tensor


@dataclass(frozen=True)
class LinearMethod:
    """A loss of hidden states: mean over tokens, with gradients for the student's states and head."""

    name: str
    loss: Callable[[Heads], Tensor]
    note: str = ""


@dataclass(frozen=True)
class OwnBackends:
    """Which of this package's backends run here.

    Args:
        names: Those that do.
        auto: The one that ``backend="auto"`` takes.
        missing: Those that do not, with the reason.
    """

    names: tuple[str, ...]
    auto: str
    missing: tuple[Missing, ...]


@cache
def own_backends(device: str) -> OwnBackends:
    """Ask each backend for a loss of two tokens."""
    small = torch.zeros(2, 8, device=device)

    def ran(backend: str) -> str:
        return distillation_loss(
            student=Logits(small), teacher=Logits(small), objective=Objective(), backend=backend
        ).backend

    names, missing = [], []
    for name in OWN:
        try:
            names.append(ran(name))
        except SettingError as error:
            missing.append(Missing(name, reason(error)))
    return OwnBackends(tuple(names), ran("auto"), tuple(missing))


def cases() -> tuple[str, ...]:
    """What the methods compute given logits."""
    return (*map(alpha_case, ALPHAS), "jsd", "kl")


def objective_of(case: str) -> AnyObjective:
    """A case as this package's objective.

    KL(p‖r) of the α-mixture with λ = 0.1; GKD's ½ KL(p‖m) + ½ KL(q‖m), m = ½p + ½q; KL(p‖q)
    """
    if case == "kl":
        return Objective(between="teacher||student")
    if case == "jsd":
        return 0.5 * Objective(alpha=-1.0, lam=0.5) + 0.5 * Objective(between="student||assistant", alpha=-1.0, lam=0.5)
    return Objective(alpha=float(case.removeprefix("alpha=")), lam=LAM)


def textbook(alpha: float, student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p‖r) as one writes it from the paper, and leaves the gradient to autograd.

    r ∝ (λ p^s + (1−λ) q^s)^{1/s}, s = (1−α)/2

    Args:
        alpha: α, not 1.
        student: Logits [N, V].
        teacher: Logits [N, V].

    Returns:
        [N].
    """
    log_q = F.log_softmax(student, dim=-1, dtype=torch.float32)
    log_p = F.log_softmax(teacher, dim=-1, dtype=torch.float32)
    s = (1.0 - alpha) / 2.0
    log_m = torch.logaddexp(s * log_p + math.log(LAM), s * log_q + math.log(1.0 - LAM)) / s
    log_r = log_m - torch.logsumexp(log_m, dim=-1, keepdim=True)
    return (log_p.exp() * (log_p - log_r)).sum(-1)


def _own(case: str, backend: str, name: str | None = None) -> Method:
    objective = objective_of(case)

    def run(student: Tensor, teacher: Tensor, reduction: str) -> Tensor:
        return distillation_loss(
            student=Logits(student),
            teacher=Logits(teacher),
            objective=objective,
            backend=backend,
            reduction=reduction,
        ).loss

    return Method(name or backend, lambda z, t: run(z, t, "none"), lambda z, t: run(z, t, "mean"))


def oracle(case: str) -> Method:
    """The package's own plainest form, on all logits and with autograd."""
    return _own(case, "naive")


def _mean(name: str, values: Callable[[Tensor, Tensor], Tensor]) -> Method:
    return Method(name, values, lambda z, t: values(z, t).mean())


def _kl_div() -> Method:
    def both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(F.log_softmax(logits, dim=-1, dtype=torch.float32) for logits in (student, teacher))

    return Method(
        "F.kl_div",
        lambda z, t: F.kl_div(*both(z, t), reduction="none", log_target=True).sum(-1),
        lambda z, t: F.kl_div(*both(z, t), reduction="batchmean", log_target=True),
    )


@cache
def trl_trainer() -> type | Missing:
    """TRL's ``GKDTrainer``, wherever the installed release keeps it."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    try:
        try:
            from trl.experimental.gkd import GKDTrainer
        except ImportError:
            from trl import GKDTrainer
    except Exception as error:  # A release that does not fit its own dependencies raises what it likes.
        return Missing("TRL GKD", f"not available: {reason(error)}")
    return GKDTrainer


def _trl() -> Method | Missing:
    trainer = trl_trainer()
    if isinstance(trainer, Missing):
        return trainer
    jsd = getattr(trainer, "generalized_jsd_loss", None)
    if jsd is None:
        return Missing("TRL GKD", "not available: this release has no GKDTrainer.generalized_jsd_loss")
    return Method(
        "TRL GKD",
        lambda z, t: jsd(z, t, beta=0.5, reduction="none").sum(-1),
        lambda z, t: jsd(z, t, beta=0.5, reduction="batchmean"),
    )


def given_logits(case: str, device: str) -> list[Method | Missing]:
    """The methods of a case: the peer first, then this package's backends that run here."""
    own = own_backends(device)
    if case == "kl":
        peer: Method | Missing = _kl_div()
    elif case == "jsd":
        peer = _trl()
    else:
        alpha = float(case.removeprefix("alpha="))
        peer = _mean("textbook", lambda z, t: textbook(alpha, z, t))
    return [peer, *(_own(case, name) for name in own.names)]


def _own_linear(case: str, backend: str, name: str) -> LinearMethod:
    objective = objective_of(case)
    return LinearMethod(
        name,
        lambda x: (
            distillation_loss(
                student=Hidden(x.states, x.weight),
                teacher=Hidden(x.teacher_states, x.teacher_weight),
                objective=objective,
                backend=backend,
            ).loss
        ),
    )


def _textbook_linear(alpha: float) -> LinearMethod:
    def loss(x: Heads) -> Tensor:
        with torch.no_grad():
            teacher = F.linear(x.teacher_states, x.teacher_weight)
        return textbook(alpha, F.linear(x.states, x.weight), teacher).mean()

    return LinearMethod("textbook", loss)


def _trl_chunked() -> LinearMethod | Missing:
    try:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss
    except Exception as error:  # As in trl_trainer.
        return Missing("TRL chunked", f"not available: {reason(error)}")

    def loss(x: Heads) -> Tensor:
        counted = torch.ones(1, x.states.shape[0], device=x.states.device)
        return _chunked_divergence_loss(
            x.states[None], x.teacher_states[None], x.weight, x.teacher_weight, counted, beta=0.5
        )[0]

    return LinearMethod("TRL chunked", loss)


def _liger(device: str, *, compiled: bool) -> LinearMethod | Missing:
    name = "Liger compiled" if compiled else "Liger"
    if compiled and not compiler(device):
        return Missing(name, "not available: torch.compile needs a C++ compiler")
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except Exception as error:  # As in trl_trainer.
        return Missing(name, f"not available: {reason(error)}")
    found = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=compiled)

    def loss(x: Heads) -> Tensor:
        labels = torch.zeros(x.states.shape[0], dtype=torch.long, device=x.states.device)
        return found(x.states, x.weight, x.teacher_states, x.teacher_weight, labels)

    return LinearMethod(name, loss, "torch.compile on, as by default" if compiled else "torch.compile off")


def compiler(device: str) -> bool:
    """Whether ``torch.compile`` has what it needs: on the CPU, a C++ compiler."""
    return device == "cuda" or any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def given_hidden(device: str, *, may_compile: bool) -> list[LinearMethod | Missing]:
    """The methods on hidden states: GKD's Jensen–Shannon for all, and AMiD at α = −3 for the one that "auto" takes.

    Args:
        device: ``cpu`` or ``cuda``.
        may_compile: Whether there is time for ``torch.compile``: half a minute for each size and dtype.
    """
    own = own_backends(device)
    return [
        _trl_chunked(),
        _liger(device, compiled=False),
        *([_liger(device, compiled=True)] if may_compile else []),
        _textbook_linear(ALPHAS[0]),
        *(_own_linear("jsd", name, name) for name in own.names),
        _own_linear(alpha_case(ALPHAS[0]), own.auto, amid_linear(own.auto)),
    ]


def available(methods: list) -> list:
    """Those that can take part."""
    return [method for method in methods if not isinstance(method, Missing)]
