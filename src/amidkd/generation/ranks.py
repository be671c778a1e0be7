"""One word among all processes: where one cannot go on, none does."""

from collections.abc import Callable

__all__ = ["agree_on"]


def agree_on(world: int) -> Callable[[str | None], str | None]:
    """How processes share what went wrong: each calls it with a message or None, and all get the first message.

    Nobody goes on before all have called.

    Args:
        world: Number of processes.
    """
    if world == 1:
        return lambda message: message

    def agree(message: str | None) -> str | None:
        import torch.distributed

        messages: list[str | None] = [None] * world
        torch.distributed.all_gather_object(messages, message)
        return next((found for found in messages if found is not None), None)

    return agree
