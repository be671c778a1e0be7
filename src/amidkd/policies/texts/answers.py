"""An answer to a prompt, as a record, as a row of a shard and as an example."""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from amidkd.data import Encoder, Example, Origin
from amidkd.errors import SettingError
from amidkd.record import write_atomic

__all__ = ["Answer", "answer_examples", "read_shard", "write_shard"]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to one prompt.

    Args:
        row: ``Row.index`` of the prompt.
        where: File and line of the prompt.
        sample: Which of the answers to this prompt, from 0.
        prompt: The prompt as text, bare; of a conversation, as the chat template shows it.
        completion: The answer as text, without special tokens and the completion's template.
        prompt_tokens: Ids that the answer was made from.
        completion_tokens: Ids of the answer, with EOS where it came.
        length: Number of these.
        finished: Whether EOS came before the limit.
        origin: Who wrote the answer.
    """

    row: int
    where: str
    sample: int
    prompt: str
    completion: str
    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]
    length: int
    finished: bool
    origin: Origin


def answer_examples(answers: Sequence[Answer], encoder: Encoder) -> list[Example]:
    """Answers as examples, by their ids and not by their text: what was said is what is learnt.

    An answer that its limit cut off has no EOS, so its end teaches nothing about ending. One with no room left beside
    its prompt (``data.max_length``) is left out.

    Args:
        answers: Answers.
        encoder: Whose limits hold.
    """
    made = (
        encoder.example_from_tokens(answer.row, answer.prompt_tokens, answer.completion_tokens, answer.origin)
        for answer in answers
    )
    return [example for example in made if example is not None]


def write_shard(path: Path, answers: Sequence[Answer]) -> None:
    """Write answers to a Parquet file, which appears complete or not at all.

    Args:
        path: The file.
        answers: Its rows, in order.
    """
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.Table.from_pylist([asdict(answer) for answer in answers], schema=_schema())
    pyarrow.parquet.write_table(table, buffer)
    write_atomic(path, buffer.getvalue())


def read_shard(path: Path) -> list[Answer]:
    """The answers of a shard.

    Args:
        path: The file.

    Raises:
        SettingError: It cannot be read, or is none of ours.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise SettingError(f"{path}: not a Parquet file that can be read ({' '.join(str(error).split())})") from None
    names = [field.name for field in fields(Answer)]
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise SettingError(f"{path}: not a file of answers: it lacks the columns {', '.join(missing)}")
    return [_answer(values) for values in table.select(names).to_pylist()]


def _answer(values: dict[str, Any]) -> Answer:
    ids = {name: tuple(values[name]) for name in ("prompt_tokens", "completion_tokens")}
    return Answer(**{**values, **ids})


def _schema() -> Any:
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    return pyarrow.schema(
        [
            ("row", pyarrow.int64()),
            ("where", pyarrow.string()),
            ("sample", pyarrow.int32()),
            ("prompt", pyarrow.string()),
            ("completion", pyarrow.string()),
            ("prompt_tokens", ids),
            ("completion_tokens", ids),
            ("length", pyarrow.int32()),
            ("finished", pyarrow.bool_()),
            ("origin", pyarrow.string()),
        ]
    )
