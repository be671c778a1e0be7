"""A teacher in memory, run on every batch."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.errors import SettingError
from amidkd.kernels import distillation_loss
from amidkd.maths import Objective, divergence
from amidkd.models import Backbone, evaluating, load_model, load_tokenizer
from amidkd.signals import Hidden, Logits
from amidkd.teachers.vocabulary import prove_same_vocabulary

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = [
    "LiveTeacher",
    "fingerprint_of",
    "hash_files",
    "hash_weights",
    "load_live",
    "make_live",
    "self_distillation_loss",
]


@final
class LiveTeacher:
    """A model in memory.

    Args:
        model: A transformers causal model, or a peft model around one.
        tokenizer: Its tokenizer.
        vocab_size: Shared vocabulary, proved by :func:`~amidkd.teachers.prove_same_vocabulary`.
        sources: Folders whose files decide the weights (model, adapter); where one is no folder, the weights
            themselves are hashed.
        variant: What else decides the signal: type, quantisation.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        vocab_size: int,
        sources: tuple[str, ...] = (),
        variant: str = "",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.backbone = Backbone(model)
        self._sources, self._variant = sources, variant
        self._heads: dict[torch.device, tuple[Tensor, Tensor | None]] = {}
        if self.backbone.width < vocab_size:
            raise SettingError(
                f"teacher: its head has {self.backbone.width} rows, but its tokenizer shares {vocab_size} ids with the "
                "student; use the tokenizer that the model was trained with"
            )

    @property
    def in_process(self) -> bool:
        """Always."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def signal(self, sequences: "Sequences") -> Hidden | Logits:
        """The teacher's distributions at the supervised positions.

        Args:
            sequences: A batch; on any device, to which the signal comes back.

        Returns:
            Hidden states and head (or logits where the head is of an unknown kind), without a gradient, in the
            type of the teacher's weights whatever autocast is on outside.

        Raises:
            SettingError: A token that the teacher does not have.
        """
        home, device = sequences.tokens_BT.device, self.device
        tokens, attention = sequences.tokens_BT.to(device), sequences.attention_BT.to(device)
        self._check(tokens, attention)
        # Not inference mode: its tensors may not enter a student's autograd graph.
        with torch.no_grad(), evaluating(self.model), torch.autocast(device.type, enabled=False):
            signal = self.backbone(tokens, attention, sequences.predicts_BT().to(device))
        return signal if device == home else self._moved(signal, home)

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Nothing to begin: the model is here."""

    def begin_step(self, step: int) -> None:
        """Nothing hangs on the step."""

    def close(self) -> None:
        """Nothing to let go of."""

    def fingerprint(self) -> str:
        """SHA-256 of the weights' files and settings, or of the weights themselves for a hub name."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        found = _hash_sources(self._sources, f"{self._variant}|{self.vocab_size}")
        if found is not None:
            return found
        digest = hashlib.sha256(f"{self._variant}|{self.vocab_size}".encode())
        digest.update(hash_weights(self.model).encode())
        return digest.hexdigest()

    def _check(self, tokens: Tensor, attention: Tensor) -> None:
        largest = int(tokens.masked_fill(attention == 0, 0).max()) if tokens.numel() else 0
        if largest >= self.vocab_size:
            raise SettingError(
                f"token {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r} to the teacher) lies beyond the "
                f"{self.vocab_size} ids that teacher and student share; remove it from the data or its template"
            )

    def _moved(self, signal: Hidden | Logits, home: torch.device) -> Hidden | Logits:
        if isinstance(signal, Logits):
            return Logits(signal.logits.to(home))
        if home not in self._heads:
            bias = None if signal.bias is None else signal.bias.to(home)
            self._heads[home] = (signal.weight.detach().to(home), bias)
        weight, bias = self._heads[home]
        return Hidden(signal.states.to(home), weight, bias=bias, scale=signal.scale, softcap=signal.softcap)


def make_live(
    config: LiveTeacherConfig, *, student_tokenizer: Any, device: str | torch.device | None = None
) -> LiveTeacher:
    """Load a run's teacher and prove that it shares the student's vocabulary.

    Args:
        config: The run file's ``teacher``.
        student_tokenizer: What the sequences are made with.
        device: The student's device, where the teacher goes unless its section names another.

    Raises:
        SettingError: The model, adapter or an extra is missing; the tokenizers differ (before any weight is loaded).
    """
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    shared = prove_same_vocabulary(teacher=tokenizer, student=student_tokenizer)
    return load_live(config, tokenizer, vocab_size=shared, device=device)


def load_live(
    config: LiveTeacherConfig, tokenizer: Any, *, vocab_size: int, device: str | torch.device | None = None
) -> LiveTeacher:
    """Load a teacher's model.

    Args:
        config: The run file's ``teacher``.
        tokenizer: Its tokenizer.
        vocab_size: The vocabulary that it speaks of.
        device: Where the teacher goes unless its section names another.

    Raises:
        SettingError: The model, adapter or an extra is missing.
    """
    model = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device or device,
        adapter=config.adapter,
        merge_adapter=config.merge_adapter,
        quantization=config.quantization,
        trust_remote_code=config.trust_remote_code,
    )
    return LiveTeacher(model, tokenizer, vocab_size=vocab_size, sources=_sources(config), variant=_variant(config))


def fingerprint_of(config: LiveTeacherConfig, *, vocab_size: int) -> str | None:
    """What ``LiveTeacher.fingerprint`` would say, from the files alone; None where they are no folders here.

    Args:
        config: The run file's ``teacher``.
        vocab_size: Vocabulary shared with the student.
    """
    return _hash_sources(_sources(config), f"{_variant(config)}|{vocab_size}")


def _sources(config: LiveTeacherConfig) -> tuple[str, ...]:
    return (config.model,) if config.adapter is None else (config.model, config.adapter)


def _variant(config: LiveTeacherConfig) -> str:
    return f"{config.dtype}|{config.quantization}|{config.merge_adapter and config.adapter is not None}"


def _hash_sources(sources: tuple[str, ...], variant: str) -> str | None:
    if not sources or not all(Path(source).is_dir() for source in sources):
        return None
    digest = hashlib.sha256(variant.encode())
    for source in sources:
        hash_files(digest, Path(source))
    return digest.hexdigest()


def self_distillation_loss(teacher: LiveTeacher, sequences: "Sequences") -> float:
    """KL of the teacher from itself, through the same path as a student's; 0 unless that path is wrong.

    One side comes from the hidden states and the head, the other from the model's own logits, so a head that is
    read wrongly shows. What is left is the rounding of the logits to the weights' type.

    Args:
        teacher: The teacher.
        sequences: A batch with supervised tokens.

    Returns:
        The mean KL(p‖q) in nats.
    """
    said = teacher.signal(sequences)
    device = teacher.device
    tokens, attention = sequences.tokens_BT.to(device), sequences.attention_BT.to(device)
    predicts = sequences.predicts_BT().to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        output = teacher.model(
            input_ids=tokens.masked_fill(attention == 0, 0), attention_mask=attention, use_cache=False
        )
    logits = output.logits[predicts].to(sequences.tokens_BT.device)
    objective = Objective(divergence=divergence("kl"), between="teacher||student")
    out = distillation_loss(student=Logits(logits), teacher=said, objective=objective, vocab_size=teacher.vocab_size)
    return float(out.loss)


def hash_files(digest: Any, folder: Path) -> None:
    """Feed a digest the names and contents of a folder's weights and configuration, in order of name."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name in ("config.json", "adapter_config.json"):
            digest.update(f"|{path.name}|".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's weights as they are in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
