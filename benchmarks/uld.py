"""How much the tokens that only one tokenizer has should count: `teacher.uld_weight`, on real stories.

    python benchmarks/uld.py [STEPS]

Teacher: stories260K (512 tokens, SentencePiece), in ``../shared``. Students: small Llamas with a byte-level tokenizer
of 1,000 tokens trained on the same stories. Each setting is trained with two seeds, and measured on held-out stories:
bits per byte of the text, and forward KL per span from the teacher. A quarter of an hour on one core.
"""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.config import SumConfig
from amidkd.data import Example, Sequences, collate
from amidkd.kernels import LossOutput
from amidkd.models import Backbone
from amidkd.teachers.alignment import TextTeacher, make_text_teacher
from amidkd.training.aligned import aligned_loss
from amidkd.training.losses import hard_loss
from amidkd.training.objective import ScheduledObjective
from amidkd.training.settings import LossSettings

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCABULARY, HELD_OUT, LETTERS, ROWS, RATE, WARM_UP = 1000, 150, 300, 16, 3e-3, 20
SETTINGS = ((1.0, None), (0.0, 0.0), (0.0, 0.1), (0.0, 1.0), (0.0, 3.0), (0.5, 0.0), (0.5, 1.0))
FORWARD = ScheduledObjective(SumConfig(divergence="kl", between="teacher||student"), steps=1)


def main(steps: int) -> None:
    """Print a line for each setting and seed."""
    lines = (SHARED / "data" / "tinystories_dev.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"][:LETTERS] for line in lines]
    held_out, train = texts[:HELD_OUT], texts[HELD_OUT:]
    tokenizer = make_tokenizer(train)
    config = LiveTeacherConfig(model=str(SHARED / "models" / "stories260K-hf"), alignment="text", dtype="float32")
    teacher = make_text_teacher(config, student_tokenizer=tokenizer)
    print(f"{teacher.shared_count} shared tokens")
    for cross_entropy, uld in SETTINGS:
        for seed in (0, 1):
            model = make_model(seed)
            learn(model, teacher, tokenizer, train, steps=steps, seed=seed, cross_entropy=cross_entropy, uld=uld)
            bits, distance = measured(model, teacher, tokenizer, held_out)
            name = "cross-entropy alone" if uld is None else f"KL + {cross_entropy} cross-entropy, uld_weight {uld}"
            print(f"{name}, seed {seed}: {bits:.4f} bits per byte, KL {distance:.4f}", flush=True)


def make_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE trained on the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def make_model(seed: int) -> Any:
    """A student with random weights."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=512,
    )
    return AutoModelForCausalLM.from_config(config)


def batch_of(tokenizer: Any, texts: list[str]) -> Sequences:
    """Texts as rows, all of them supervised."""
    rows = [(tokenizer.bos_token_id, *tokenizer.encode(text)) for text in texts]
    return collate([Example(row, (False,) + (True,) * (len(row) - 1), row=0) for row in rows], pad_id=0)


def loss_of(
    model: Any, teacher: TextTeacher, batch: Sequences, *, count: int, cross_entropy: float, uld: float | None
) -> LossOutput:
    """The loss of a batch; without ``uld`` the cross-entropy alone."""
    student = Backbone(model)(batch.tokens_BT, batch.attention_BT, batch.predicts_BT())
    if uld is None:
        return hard_loss(LossSettings(vocab_size=VOCABULARY), student=student, sequences=batch, count=count)
    teacher.uld_weight = uld
    settings = LossSettings(FORWARD, cross_entropy_weight=cross_entropy, vocab_size=VOCABULARY)
    said = teacher.signal(batch)
    return aligned_loss(settings, student=student, said=said, sequences=batch, step=0, count=count, measure=True)


def learn(
    model: Any, teacher: TextTeacher, tokenizer: Any, texts: list[str], *, steps: int, seed: int, **weights: Any
) -> None:
    """Train a student."""
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARM_UP) * (1 - step / steps)
        batch = batch_of(tokenizer, draw.sample(texts, ROWS))
        optimizer.zero_grad()
        loss_of(model, teacher, batch, count=batch.token_count(), **weights).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def measured(model: Any, teacher: TextTeacher, tokenizer: Any, texts: list[str]) -> tuple[float, float]:
    """Bits per byte of texts, and forward KL per span."""
    nats, distance, spans = 0.0, 0.0, 0
    for start in range(0, len(texts), 50):
        batch = batch_of(tokenizer, texts[start : start + 50])
        nats += float(loss_of(model, teacher, batch, count=1, cross_entropy=1.0, uld=None).loss)
        metrics = loss_of(model, teacher, batch, count=1, cross_entropy=0.0, uld=0.0).metrics
        distance += float(metrics["divergence"] * metrics["tokens"])
        spans += int(metrics["tokens"])
    return nats / math.log(2) / sum(len(text.encode()) for text in texts), distance / spans


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 150)
