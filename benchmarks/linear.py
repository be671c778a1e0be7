"""Loss and gradient from hidden states and heads, against the four products that nobody can do without."""

from collections.abc import Callable, Iterator

import peers
import torch
from context import Context
from names import PRODUCTS
from timing import Row

__all__ = ["heads", "run"]


def heads(tokens: int, vocabulary: int, width: int, teacher_width: int, *, dtype, device: str, seed: int):
    """Hidden states and heads of both sides, whose logits have standard deviation 3."""
    generator = torch.Generator(device).manual_seed(seed)

    def noise(rows: int, columns: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, generator=generator).mul_(scale).to(dtype)

    return peers.Heads(
        states=noise(tokens, width, 1.0).requires_grad_(),
        weight=noise(vocabulary, width, 3 * width**-0.5).requires_grad_(),
        teacher_states=noise(tokens, teacher_width, 1.0),
        teacher_weight=noise(vocabulary, teacher_width, 3 * teacher_width**-0.5),
    )


def _products(inputs: peers.Heads) -> Callable[[], None]:
    """Logits of both sides, and the gradients of the student's states and head from a gradient of its logits.

    The logits' buffers are reused, since whoever works in chunks reuses theirs; the two gradients are new tensors, as
    any method must return them.
    """
    states, weight = inputs.states.detach(), inputs.weight.detach()
    student, teacher = (states.new_empty(states.shape[0], weight.shape[0]) for _ in range(2))

    def call() -> None:
        torch.mm(states, weight.T, out=student)
        torch.mm(inputs.teacher_states, inputs.teacher_weight.T, out=teacher)
        torch.mm(student, weight)
        torch.mm(student.T, states)

    return call


def run(context: Context) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups with the name of their yardstick and their rows."""
    sizes = context.sizes
    # The textbook form holds all logits, so that is a question of memory; its time is that of the section before.
    methods = [
        item for item in peers.given_hidden(context.device, may_compile=not context.quick) if item.name != "textbook"
    ]
    for dtype in sizes.dtypes:
        inputs = heads(
            sizes.linear_tokens,
            sizes.vocabulary,
            sizes.student_width,
            sizes.teacher_width,
            dtype=getattr(torch, dtype),
            device=context.device,
            seed=context.seed,
        )

        def make(method: peers.LinearMethod, inputs: peers.Heads = inputs) -> Callable[[], None]:
            def call() -> None:
                inputs.states.grad = inputs.weight.grad = None
                method.loss(inputs).backward()

            return call

        able = peers.available(methods)
        rows = context.timed(
            "linear",
            dtype,
            {PRODUCTS: _products(inputs)} | {method.name: make(method) for method in able},
            rounds=sizes.rounds[1] if context.heap != "default" else 2,
            missing={item.name: item.why for item in methods if isinstance(item, peers.Missing)},
            notes={method.name: method.note for method in able},
        )
        yield dtype, PRODUCTS, rows
