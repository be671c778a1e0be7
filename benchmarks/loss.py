"""Loss and gradient, logits given."""

from collections.abc import Iterator

import peers
import torch
from context import Context
from names import group
from timing import Row

__all__ = ["ORACLE_GROUP", "logits", "run"]

ORACLE_GROUP = "alpha=0.5 float32, the oracle's few tokens"


def logits(tokens: int, vocabulary: int, *, dtype: torch.dtype, device: str, seed: int) -> tuple:
    """Student and teacher logits [N, V] of standard deviation 3 that agree in part, as after some training."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.randn(tokens, vocabulary, device=device, generator=generator)

    teacher = noise().mul_(3)
    student = noise().mul_(1.8).add_(teacher, alpha=0.8)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def _calls(methods: list[peers.Method], student: torch.Tensor, teacher: torch.Tensor) -> dict:
    def make(method: peers.Method):
        def call() -> None:
            student.grad = None
            method.loss(student, teacher).backward()

        return call

    return {method.name: make(method) for method in methods}


def run(context: Context) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups with the name of their yardstick and their rows."""
    sizes, (rounds, _, _) = context.sizes, context.sizes.rounds
    for dtype in sizes.dtypes:
        student, teacher = logits(
            sizes.tokens, sizes.vocabulary, dtype=getattr(torch, dtype), device=context.device, seed=context.seed
        )
        for case in peers.cases():
            methods = peers.given_logits(case, context.device)
            rows = context.timed(
                "loss",
                group(case, dtype),
                _calls(peers.available(methods), student, teacher),
                rounds=rounds,
                missing={item.name: item.why for item in methods if isinstance(item, peers.Missing)},
            )
            yield group(case, dtype), methods[0].name, rows
    yield _oracle(context, rounds)


def _oracle(context: Context, rounds: int) -> tuple[str, str, list[Row]]:
    """What the plainest form costs; it is no yardstick, since nobody would train with it."""
    sizes = context.sizes
    student, teacher = logits(
        sizes.naive_tokens, sizes.vocabulary, dtype=torch.float32, device=context.device, seed=context.seed
    )
    methods = [*peers.available(peers.given_logits("alpha=0.5", context.device)), peers.oracle("alpha=0.5")]
    rows = context.timed("loss", ORACLE_GROUP, _calls(methods, student, teacher), rounds=min(rounds, 3), missing={})
    return f"{ORACLE_GROUP} (N = {sizes.naive_tokens})", "textbook", rows
