"""Rows to evaluate on, as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from amidkd.data import Encoder, Example, Row
from amidkd.errors import SettingError

__all__ = ["HeldOut", "hold_out", "question"]


@dataclass(frozen=True)
class HeldOut:
    """Rows to evaluate on, as tokens.

    Args:
        rows: The rows, P of them.
        prompts: Token ids of each row's prompt; None for plain text.
        texts: Each row with its completion as tokens, the completion supervised; None where there is none.
        references: Right answers to each; empty where none is known.
        dropped: How many more rows were left out.
        truncated: How many texts are cut at ``data.max_length``, so that their likelihood is that of their beginning.
        full: How many prompts have as many tokens as may be, where ``data.long_prompts`` cuts longer ones.
    """

    rows: list[Row]
    prompts: list[tuple[int, ...] | None]
    texts: list[Example | None]
    references: list[tuple[str, ...]]
    dropped: int = 0
    truncated: int = 0
    full: int = 0

    @property
    def asked(self) -> list[int]:
        """Places of the rows that have a prompt."""
        return [place for place, prompt in enumerate(self.prompts) if prompt is not None]


def hold_out(rows: Sequence[Row], encoder: Encoder) -> HeldOut:
    """Rows to evaluate on, as tokens; what ``data.long_prompts: drop`` leaves out is left out here too.

    Args:
        rows: Held-out rows.
        encoder: Rows to tokens, as in training.

    Raises:
        SettingError: No row is left, or one cannot be used.
    """
    # Rows may come from several files, each with its own count.
    rows = [replace(row, index=place) for place, row in enumerate(rows)]
    encoded = encoder.encode(rows)
    labelled = {example.row: example for example in encoded.examples}
    asked = [row for row in rows if row.text is None]
    prompts = dict(zip((row.index for row in asked), encoder.prompts_tokens(asked), strict=True))
    kept = [
        place
        for place, row in enumerate(rows)
        if prompts.get(place) is not None or (row.text is not None and place in labelled)
    ]
    if not kept:
        raise SettingError("no row is left to evaluate on: all prompts are over the limit (data.long_prompts: drop)")
    chosen = [rows[place] for place in kept]
    return HeldOut(
        chosen,
        [None if prompts.get(place) is None else tuple(prompts[place] or ()) for place in kept],
        [labelled.get(place) for place in kept],
        [_references(row) for row in chosen],
        dropped=len(rows) - len(kept),
        truncated=encoded.truncated,
        full=_full(list(prompts.values()), encoder),
    )


def _full(prompts: Sequence[list[int] | None], encoder: Encoder) -> int:
    if encoder.config.long_prompts not in ("keep_start", "keep_end"):
        return 0
    return sum(prompt is not None and len(prompt) == encoder.prompt_limit for prompt in prompts)


def _references(row: Row) -> tuple[str, ...]:
    answer = () if row.answer is None else (row.answer,)
    return tuple(dict.fromkeys((*answer, *row.references)))


def question(row: Row) -> str:
    """What a row asks, as people read it: its prompt, the turns before the answer, or nothing for plain text.

    Args:
        row: A row.
    """
    if row.messages is None:
        return row.prompt or ""
    turns = row.messages[:-1] if row.labelled else row.messages
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
