"""A tokenizer as bytes: what each token stands for, and text cut into tokens without anything added or changed.

Two kinds of tokenizer have a token for every byte and therefore for every text: byte-level BPE (GPT-2, Llama 3, Qwen),
whose tokens are written in an alphabet of 256 letters, one for each byte; and SentencePiece with byte fallback
(Llama 2, Mistral, Gemma), which writes a space as ▁ and a byte that no token has as <0xE2>.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, final

from amidkd.errors import SettingError

__all__ = ["Pieces"]

_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BROKEN = re.compile("([\ud800-\udfff])")
_BROKEN_OR_MARK = re.compile(f"([\ud800-\udfff{_SPACE}])")


@final
class Pieces:
    """What the tokens of a tokenizer stand for.

    Args:
        tokenizer: A fast tokenizer (one with ``backend_tokenizer``).
        side: ``teacher`` or ``student``, for messages.

    Attributes:
        tokens: The bytes of each id; None for a special token and for an id without a token.
        special: The string of each special token.
        bos: Id that opens a text, or None.
        eos: Id that closes a text, or None.
        opens: Whether the tokenizer itself begins a text with ``bos``.

    Raises:
        SettingError: The tokenizer cannot be mapped to bytes.
    """

    def __init__(self, tokenizer: Any, *, side: str) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise SettingError(
                f"teacher.alignment: text needs the {side}'s tokenizer as a fast one (tokenizer.json); "
                f"{type(tokenizer).__name__} is not"
            )
        layout = json.loads(backend.to_str())
        self._byte_level = _byte_level(layout)
        self._space_first = _space_first(layout)
        if not self._byte_level and not layout["model"].get("byte_fallback"):
            raise SettingError(
                f"teacher.alignment: text cannot map the {side}'s tokenizer to bytes: its model is "
                f"{layout['model'].get('type')}, neither byte-level BPE nor SentencePiece with byte fallback; use a "
                "teacher and a student of one tokenizer and `alignment: token`"
            )
        added = {entry["id"]: entry for entry in layout["added_tokens"]}
        self.special = {number: entry["content"] for number, entry in added.items() if entry["special"]}
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.special |= {
            number: tokenizer.convert_ids_to_tokens(number) for number in (self.bos, self.eos) if number is not None
        }
        literal = {number: entry["content"] for number, entry in added.items() if not entry["special"]}
        self.strings = {number: string for string, number in tokenizer.get_vocab().items()}
        self.tokens = [self._bytes_of(number, literal) for number in range(max(self.strings) + 1)]
        self.byte_ids = self._single_bytes()
        opening = tokenizer.encode("")
        self.opens = self.bos is not None and opening[:1] == [self.bos]
        self._plain = _plain(backend, layout)

    def __len__(self) -> int:
        return len(self.tokens)

    def is_byte(self, number: int) -> bool:
        """Whether a token is the byte fallback's, which stands for a byte of a letter that no token has."""
        return not self._byte_level and _BYTE.fullmatch(self.strings.get(number, "")) is not None

    def adds_space(self, text: bytes) -> bool:
        """Whether the tokenizer puts a space of its own before a text."""
        return self._space_first == "always" or (self._space_first == "missing" and not text.startswith(b" "))

    def strip(self, first: bytes) -> bytes:
        """The bytes of the token that opens a text, without the space that the tokenizer put there."""
        return first[1:] if self._space_first is not None and first.startswith(b" ") else first

    def encode(self, text: bytes) -> list[int]:
        """Cut bytes into tokens that stand for exactly these bytes; what is no UTF-8 becomes tokens of single bytes.

        Special tokens that are spelt out in the text stay text.

        Raises:
            SettingError: A byte that no token stands for.
        """
        found: list[int] = []
        for part, broken in _parts(text, _BROKEN if self._byte_level else _BROKEN_OR_MARK):
            ids = [] if broken else self._plain.encode(part.decode(), add_special_tokens=False).ids
            if broken or b"".join(self.tokens[number] or b"" for number in ids) != part:
                ids = [self._byte_id(byte) for byte in part]
            found += ids
        return found

    def _byte_id(self, byte: int) -> int:
        if byte not in self.byte_ids:
            raise SettingError(
                f"teacher.alignment: text: the teacher's tokenizer has no token for the byte {byte:#04x} and cannot "
                "read the student's text; use a tokenizer with all 256 bytes"
            )
        return self.byte_ids[byte]

    def _bytes_of(self, number: int, literal: dict[int, str]) -> bytes | None:
        string = self.strings.get(number)
        if string is None or number in self.special:
            return None
        if number in literal:
            return string.encode()
        if self._byte_level:
            letters = [_ALPHABET.get(letter) for letter in string]
            return string.encode() if None in letters else bytes(byte for byte in letters if byte is not None)
        as_byte = _BYTE.fullmatch(string)
        return bytes([int(as_byte[1], 16)]) if as_byte else string.replace(_SPACE, " ").encode()

    def _single_bytes(self) -> dict[int, int]:
        """A token for each byte; the one that is no byte fallback where there are two."""
        found: dict[int, int] = {}
        for number, piece in enumerate(self.tokens):
            if piece is not None and len(piece) == 1 and (piece[0] not in found or self.is_byte(found[piece[0]])):
                found[piece[0]] = number
        return found


def _alphabet() -> dict[str, int]:
    """The letters of byte-level BPE: printable Latin-1 bytes as themselves, the others from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _alphabet()


def _steps(section: Any, key: str) -> Iterator[dict[str, Any]]:
    """The steps of a tokenizer's section, whether it is one or a sequence."""
    if section is None:
        return
    if section["type"] != "Sequence":
        yield section
        return
    for step in section[key]:
        yield from _steps(step, key)


def _byte_level(layout: dict[str, Any]) -> bool:
    sections = (("decoder", "decoders"), ("pre_tokenizer", "pretokenizers"), ("normalizer", "normalizers"))
    return any(step["type"] == "ByteLevel" for name, key in sections for step in _steps(layout[name], key))


def _space_first(layout: dict[str, Any]) -> str | None:
    """Whether a space is put before a text: ``always``, where it is ``missing``, or never (None)."""
    if any(step["type"] == "Prepend" for step in _steps(layout["normalizer"], "normalizers")):
        return "always"
    for step in _steps(layout["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return "missing"
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return "missing"
    return None


def _plain(backend: Any, layout: dict[str, Any]) -> Any:
    """The tokenizer without anything that changes a text: no space put before it, no normal form, no special tokens."""
    layout = json.loads(json.dumps(layout))
    kept = [
        step
        for step in _steps(layout["normalizer"], "normalizers")
        if step["type"] == "ByteLevel" or (step["type"] == "Replace" and step["content"] == _SPACE)
    ]
    layout["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    for step in _steps(layout["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    layout["truncation"] = layout["padding"] = None
    plain = type(backend).from_str(json.dumps(layout))
    plain.encode_special_tokens = True
    return plain


def _parts(text: bytes, broken: re.Pattern[str]) -> Iterator[tuple[bytes, bool]]:
    """Bytes as runs that the tokenizer cuts, and what it cannot: no UTF-8, or a letter that it takes for a space."""
    for part in broken.split(text.decode("utf-8", errors="surrogateescape")):
        if part:
            yield part.encode("utf-8", errors="surrogateescape"), broken.fullmatch(part) is not None
