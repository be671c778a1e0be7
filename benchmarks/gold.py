"""The loss across tokenizers beside that of TRL's GOLD, on one small pair of models, text and tokenizers.

    python benchmarks/gold.py

Two byte-level tokenizers are trained, one on this repository's prose and one on its code (so the numbers change with
these files), since GOLD takes no other kind; the two small models have random weights. GOLD is asked twice: with its
strategy `bayesian`, which compares what is said before each token, and with its default `observed`, which compares
what is said after it.

Where every span is one token on both sides, the definitions differ in three things, which the lines "less …" take
away one after another: GOLD leaves out the rest of the mass (the outcome of all tokens that are not shared), raises
probabilities below 1e-8 to that, and divides by spans where this package divides by tokens (here both are means over
spans). Where spans have several tokens, GOLD scales the whole distribution by the other tokens' probabilities, so that
it no longer adds up to 1, and the values have no reason to agree. Needs TRL (extra `bench`).
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from amidkd.config import SumConfig
from amidkd.data import Example, collate
from amidkd.signals import Logits
from amidkd.teachers import LiveTeacher
from amidkd.teachers.alignment import TextTeacher, shared_tokens
from amidkd.training.aligned import aligned_loss
from amidkd.training.objective import ScheduledObjective
from amidkd.training.settings import LossSettings

REPOSITORY = Path(__file__).resolve().parents[1]
PROMPT = "The teacher says:\n"


def main() -> None:
    """Print the table."""
    torch.manual_seed(0)
    prose = sorted(REPOSITORY.glob("docs/**/*.md"))
    small, large = make_tokenizer(prose, 600), make_tokenizer(sorted(REPOSITORY.glob("src/**/*.py")), 1200)
    text = " ".join(prose[0].read_text().split()[:120])
    plain = one_to_one(text, small, large)
    print(f"{'':44}{'ours':>12}{'bayesian':>12}{'observed':>12}")
    for name, student, teacher, body in (
        ("one tokenizer", small, small, text),
        (f"two tokenizers, {len(plain.split())} words cut alike", small, large, plain),
        ("two tokenizers, any text", small, large, text),
    ):
        compare(name, Pair(student, teacher, body), alike=body is plain or student is teacher)


def make_tokenizer(files: Sequence[Path], size: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on some files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    backend.train([str(file) for file in files], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def one_to_one(text: str, student: Any, teacher: Any) -> str:
    """The words of a text that both tokenizers make one token of, the same."""
    words = [f" {word}" for word in dict.fromkeys(text.split())]
    return "".join(word for word in words if len(student.encode(word)) == len(teacher.encode(word)) == 1)


class Pair:
    """Two models with random weights and a text: what both losses are given."""

    def __init__(self, student: Any, teacher: Any, text: str) -> None:
        self.tokenizers, self.text = (student, teacher), text
        self.models = [make_model(len(tokenizer), seed) for seed, tokenizer in enumerate(self.tokenizers)]
        self.prompts = [[tokenizer.bos_token_id, *tokenizer.encode(PROMPT)] for tokenizer in self.tokenizers]
        self.rows = [
            prompt + tokenizer.encode(text) for prompt, tokenizer in zip(self.prompts, self.tokenizers, strict=True)
        ]
        with torch.no_grad():
            self.logits = [
                model(torch.tensor([row])).logits.double() for model, row in zip(self.models, self.rows, strict=True)
            ]

    def ours(self, *, uld: float) -> tuple[float, int, int]:
        """This package's loss, summed over spans; how many there are; and how many tokens are shared."""
        reader = self._reader(uld)
        row = self.rows[0]
        cut = len(self.prompts[0])
        sequences = collate([Example(tuple(row), tuple(n >= cut for n in range(len(row))), 0)], pad_id=0)
        settings = LossSettings(
            ScheduledObjective(SumConfig(divergence="kl", between="teacher||student"), steps=1),
            vocab_size=reader.vocab_size,
        )
        out = aligned_loss(
            settings,
            student=Logits(self.logits[0][sequences.predicts_BT()]),
            said=reader.signal(sequences),
            sequences=sequences,
            step=0,
            count=1,
            measure=True,
        )
        return float(out.loss), int(out.metrics["tokens"]), reader.shared_count

    def textbook(self, *, least: float) -> float:
        """Σ p log(p/q) over the shared tokens alone, all spans being one token; probabilities at least ``least``."""
        reader = self._reader(0.0)
        shared = shared_tokens(reader.teacher, reader.student)
        found = []
        for logits, prompt, ids in zip(self.logits, self.prompts, shared, strict=True):
            probabilities = logits[0, len(prompt) - 1 : -1].softmax(-1)[:, ids]
            found.append(probabilities.clamp(min=least))
        q, p = found
        return float((p * (p / q).log()).sum())

    def _reader(self, uld: float) -> TextTeacher:
        teacher = LiveTeacher(self.models[1], self.tokenizers[1], vocab_size=len(self.tokenizers[1]))
        return TextTeacher(teacher, student_tokenizer=self.tokenizers[0], uld_weight=uld)

    def gold(self, *, matched: float, unmatched: float, strategy: str) -> float:
        """GOLD's hybrid loss with forward KL, times its spans."""
        from trl.experimental.gold.gold_trainer import ULDLoss

        config = SimpleNamespace(
            uld_crossentropy_weight=0.0,
            uld_distillation_weight=1.0,
            uld_student_temperature=1.0,
            uld_teacher_temperature=1.0,
            uld_skip_student_eos=False,
            uld_skip_teacher_eos=False,
            use_extended_uld=True,
            uld_token_merge_strategy=strategy,
            uld_use_hybrid_loss=True,
            uld_hybrid_matched_weight=matched,
            uld_hybrid_unmatched_weight=unmatched,
            beta=0.0,
        )
        loss = ULDLoss(config, *self.tokenizers)
        rows = [torch.tensor([row]) for row in self.rows]
        labels = [row.clone() for row in rows]
        for label, prompt in zip(labels, self.prompts, strict=True):
            label[:, : len(prompt)] = -100
        return float(loss(*self.logits, *labels, *rows, *self._offsets()))

    def _offsets(self) -> list[Tensor]:
        from trl.experimental.utils import encode_with_byte_offsets

        found = []
        for tokenizer, prompt in zip(self.tokenizers, self.prompts, strict=True):
            [(_, offsets)] = encode_with_byte_offsets(tokenizer.backend_tokenizer, [self.text])
            found.append(torch.tensor([[(0, 0)] * len(prompt) + list(offsets)]))
        return found


def make_model(width: int, seed: int) -> Any:
    """A Llama of two layers."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=width,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.3,
    )
    return AutoModelForCausalLM.from_config(config).double().eval()


def compare(name: str, pair: Pair, *, alike: bool) -> None:
    """The lines of a pair: the mean over spans of each part; ``alike`` where every span is one token."""
    whole, spans, shared = pair.ours(uld=0.0)
    ranked = pair.ours(uld=1.0)[0] - whole
    print(f"{name}: {spans} spans, {shared} shared tokens")
    for part, ours, weights in (
        ("  shared tokens, KL(p||q)", whole, {"matched": 1.0, "unmatched": 0.0}),
        ("  other tokens by rank", ranked, {"matched": 0.0, "unmatched": 1.0}),
    ):
        theirs = [pair.gold(**weights, strategy=strategy) for strategy in ("bayesian", "observed")]
        print(f"{part:44}{ours / spans:12.6f}{theirs[0]:12.6f}{theirs[1]:12.6f}")
        if "shared" in part and alike:
            for difference, least in (("less the rest of the mass", 0.0), ("and probabilities below 1e-8", 1e-8)):
                print(f"{'    ' + difference:44}{pair.textbook(least=least) / spans:12.6f}")
    print()


if __name__ == "__main__":
    main()
