"""The model that is served: loaded once, and what clients are told of it."""

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch

from amidkd import __version__
from amidkd.config import LiveTeacher as LiveTeacherConfig
from amidkd.config import ServeConfig
from amidkd.models import load_tokenizer, vocabulary_size
from amidkd.models.facts import text_config
from amidkd.signals import Hidden
from amidkd.teachers.live import LiveTeacher, load_live
from amidkd.teachers.served.protocol import (
    PROTOCOL,
    RequestError,
    ScoredRow,
    Wish,
    bytes_per_token,
    checksum_of,
    sealed,
)

__all__ = ["ServedModel", "load_served"]

_UNKNOWN_CONTEXT = 4096
_MEBI = 2**20


@final
class ServedModel:
    """A teacher with the limits of its server.

    Args:
        teacher: The model.
        name: What clients call it.
        settings: The run file's ``serve``.
    """

    def __init__(self, teacher: LiveTeacher, *, name: str, settings: ServeConfig) -> None:
        self.teacher, self.name, self.settings = teacher, name, settings
        self.max_tokens = settings.max_tokens or _context(teacher.model)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Names what says something: repeated in each answer."""
        return {"protocol": PROTOCOL, "package": __version__, "fingerprint": self.teacher.fingerprint()}

    @cached_property
    def info(self) -> dict[str, Any]:
        """What a client must know before it asks."""
        said = {
            **self.facts,
            "model": self.name,
            "vocab_size": self.teacher.vocab_size,
            "width": self.teacher.backbone.width,
            "hidden_bytes": self._hidden_bytes,
            "formats": list(self._forms),
            "max_top_k": self.settings.max_top_k,
            "max_rows": self.settings.max_rows,
            "max_tokens": self.max_tokens,
            "max_request_bytes": int(self.settings.max_request_mb * _MEBI),
            "max_answer_bytes": int(self.settings.max_answer_mb * _MEBI),
        }
        return {**said, "checksum": checksum_of(said)}

    @cached_property
    def tokenizer(self) -> bytes:
        """The tokenizer's files, sealed."""
        with tempfile.TemporaryDirectory() as folder:
            self.teacher.tokenizer.save_pretrained(folder)
            files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir()) if file.is_file()}
        tensors = {
            name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in files.items() if content
        }
        return sealed("tokenizer", tensors, self.facts)

    @cached_property
    def head(self) -> bytes:
        """The head that turns hidden states into logits, sealed."""
        signal = self._signal
        assert isinstance(signal, Hidden)
        tensors = {"weight": signal.weight}
        if signal.bias is not None:
            tensors["bias"] = signal.bias
        return sealed("head", tensors, {**self.facts, "scale": signal.scale, "softcap": signal.softcap})

    def check(self, rows: list[ScoredRow], wish: Wish) -> None:
        """Refuse what cannot be answered, before any work.

        Raises:
            RequestError: Says what, and the limit.
        """
        if wish.form not in self._forms:
            raise RequestError(f"format hidden: {self.teacher.backbone.reason}; ask for top_k")
        if wish.vocab_size > self.teacher.backbone.width:
            raise RequestError(f"vocab_size {wish.vocab_size}; the model has {self.teacher.backbone.width} ids")
        most = min(self.settings.max_top_k, wish.vocab_size)
        if wish.top_k > most:
            raise RequestError(f"top_k {wish.top_k}; it may be at most {most} (serve.max_top_k, vocab_size)")
        for number, row in enumerate(rows):
            low, high = int(row.tokens_T.min()), int(row.tokens_T.max())
            if low < 0 or high >= self.teacher.vocab_size:
                wrong = low if low < 0 else high
                raise RequestError(f"row {number}: token {wrong}; ids are 0 … {self.teacher.vocab_size - 1}")
            if len(row.tokens_T) > self.max_tokens:
                raise RequestError(f"row {number}: {len(row.tokens_T)} tokens; at most {self.max_tokens}", 413)
        size = sum(len(row.places_n) for row in rows) * bytes_per_token(wish, hidden_bytes=self._hidden_bytes)
        if size > self.settings.max_answer_mb * _MEBI:
            raise RequestError(
                f"the answer would have {size} bytes, over {self.settings.max_answer_mb:g} MiB (serve.max_answer_mb); "
                "ask for fewer rows at once",
                413,
            )

    @property
    def _forms(self) -> tuple[str, ...]:
        return ("top_k", "hidden") if isinstance(self._signal, Hidden) else ("top_k",)

    @property
    def _hidden_bytes(self) -> int:
        signal = self._signal
        return signal.states.shape[1] * signal.states.element_size() if isinstance(signal, Hidden) else 0

    @cached_property
    def _signal(self) -> Any:
        """What the model says of one token; its head is the model's."""
        device = self.teacher.device
        tokens = torch.zeros((1, 2), dtype=torch.int64, device=device)
        with torch.no_grad():
            return self.teacher.backbone(tokens, torch.ones_like(tokens), torch.tensor([[True, False]], device=device))


def load_served(config: LiveTeacherConfig, settings: ServeConfig) -> ServedModel:
    """Load the model to serve, and all that clients are told of it.

    Args:
        config: The run file's ``teacher``.
        settings: The run file's ``serve``.

    Raises:
        SettingError: The model, adapter or an extra is missing.
    """
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    teacher = load_live(config, tokenizer, vocab_size=vocabulary_size(tokenizer), device=device)
    served = ServedModel(teacher, name=config.name or Path(config.model).name, settings=settings)
    # Hashing the weights takes time; the first client should not wait for it.
    assert served.info
    return served


def _context(model: Any) -> int:
    return int(getattr(text_config(model), "max_position_embeddings", None) or _UNKNOWN_CONTEXT)
