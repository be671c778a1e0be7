"""Two small real pairs of teacher and student with their data: what the measurements of teachers start from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amidkd.config import parse
from amidkd.data import Encoder, Example, Sequences, collate, load_rows
from amidkd.models import Backbone, load_model, load_tokenizer
from amidkd.models.prune import depth_pruned
from amidkd.signals import Hidden, Logits, Signal, TopK
from amidkd.teachers.cached import Layout

__all__ = ["SHARED", "World", "stored_hidden", "stored_top_k", "worlds"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@dataclass(frozen=True)
class World:
    """A teacher, a trained student, and rows.

    Args:
        name: What tables call it.
        teacher: Frozen.
        student: Trained, and not by this teacher's cache.
        untrained: The student that the short training starts from.
        train: Rows to learn from.
        held_out: Rows to judge by.
        batch: Rows of a step.
        learning_rate: Of the short training.
        epochs: Of the short training.
        vocab_size: V.
    """

    name: str
    teacher: Any
    student: Any
    untrained: Any
    train: list[Example]
    held_out: list[Example]
    batch: int
    learning_rate: float
    epochs: int
    vocab_size: int

    def batches(self, rows: list[Example], size: int) -> Iterator[Sequences]:
        for start in range(0, len(rows), size):
            yield collate(rows[start : start + size], pad_id=0)

    @torch.no_grad()
    def teacher_log_probs(self, sequences: Sequences) -> Tensor:
        """log p [N, V], float32."""
        return self.logits(self.teacher, sequences).log_softmax(-1)

    @torch.no_grad()
    def teacher_states(self, sequences: Sequences) -> Hidden:
        signal = Backbone(self.teacher)(sequences.tokens_BT, sequences.attention_BT, sequences.predicts_BT())
        assert isinstance(signal, Hidden)
        return signal

    def logits(self, model: Any, sequences: Sequences) -> Tensor:
        """A model's logits at the supervised positions [N, V]."""
        output = model(input_ids=sequences.tokens_BT, attention_mask=sequences.attention_BT, use_cache=False)
        return output.logits[sequences.predicts_BT()].float()


def stored_top_k(log_p: Tensor, k: int) -> TopK:
    """The teacher's distributions as a cache of format ``top_k`` gives them back."""
    layout = Layout("top_k", log_p.shape[-1], top_k=k)
    found = layout.decode(layout.encode(Logits(log_p)), None)
    assert isinstance(found, TopK)
    return found


def stored_hidden(hidden: Hidden) -> Signal:
    """The teacher's states as a cache of format ``hidden`` gives them back."""
    head = {"weight": hidden.weight, "bias": hidden.bias, "scale": hidden.scale, "softcap": hidden.softcap}
    layout = Layout("hidden", len(hidden.weight), width=hidden.states.shape[1])
    return layout.decode(layout.encode(hidden), head)


def _rows(tokenizer: Any, data: dict[str, Any], file: Path, limit: int) -> list[Example]:
    config = parse({"student": "none", "teacher": "none", "data": data, "output": "none"}).data
    return Encoder(tokenizer, config).encode(load_rows(file, max_rows=limit)).examples


def _stories() -> World:
    folder = SHARED / "models" / "stories260K-hf"
    file = SHARED / "data" / "tinystories_dev.jsonl"
    teacher = load_model(folder).eval().requires_grad_(False)
    rows = _rows(load_tokenizer(folder), {"train": str(file), "max_length": 256}, file, 600)
    return World(
        name="stories",
        teacher=teacher,
        student=load_model(SHARED / "models" / "llama2xs-279K-hf").eval(),
        untrained=depth_pruned(teacher, 3).requires_grad_(True),
        train=rows[100:],
        held_out=rows[:100],
        batch=16,
        learning_rate=1e-3,
        epochs=4,
        vocab_size=512,
    )


def _pronunciation() -> World:
    folder = SHARED / "models" / "g2p-teacher"
    tokenizer = load_tokenizer(folder)
    file = SHARED / "data" / "g2p_cmudict_train.jsonl"
    held_out = SHARED / "data" / "g2p_cmudict_valid.jsonl"
    data = {"train": str(file), "prompt_template": "<s>{prompt}<sep>", "max_length": 64}
    student = SHARED / "models" / "g2p-st64_ce"
    # The file is in the order of the alphabet.
    rows = _rows(tokenizer, data, file, 200_000)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:25_600].tolist()
    return World(
        name="pronunciation",
        teacher=load_model(folder).eval().requires_grad_(False),
        student=load_model(student).eval(),
        untrained=load_model(student),
        train=[rows[place] for place in chosen],
        held_out=_rows(tokenizer, data, held_out, 1_000),
        batch=128,
        learning_rate=3e-4,
        epochs=1,
        vocab_size=100,
    )


def worlds(names: list[str]) -> Iterator[World]:
    """The pairs of the given names, one at a time."""
    made = {"stories": _stories, "pronunciation": _pronunciation}
    for name in names:
        yield made[name]()
