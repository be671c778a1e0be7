"""The client of `amidkd serve`: a teacher on another machine, asked ahead, whose every answer is checked."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from amidkd.config import ServedTeacher as ServedTeacherConfig
from amidkd.errors import SettingError, TeacherError
from amidkd.signals import Hidden, TopK
from amidkd.teachers.served.ahead import Ahead, scored_rows
from amidkd.teachers.served.answers import read_answer
from amidkd.teachers.served.http import TeacherClient
from amidkd.teachers.served.protocol import BINARY, ScoredRow, Wish, bytes_per_token, pack_request

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = ["ServedTeacher"]


@final
class ServedTeacher:
    """A model behind `amidkd serve`.

    Args:
        client: HTTP to the server.
        info: What the server said of itself, checked.
        vocab_size: Vocabulary shared with the student, which was proved.
        config: The run file's ``teacher``.
        head: The model's head, a signal of no token, with ``format: hidden``.
        closing: Set when the teacher is closed.
    """

    def __init__(
        self,
        client: TeacherClient,
        info: Mapping[str, Any],
        *,
        vocab_size: int,
        config: ServedTeacherConfig,
        head: Hidden | None,
        closing: threading.Event,
    ) -> None:
        self.vocab_size = vocab_size
        self._client, self._info, self._head = client, info, head
        top_k = min(config.top_k, vocab_size) if config.format == "top_k" else 0
        self._wish = Wish(config.format, top_k, vocab_size)
        self._heads: dict[torch.device, Hidden] = {}
        self._ahead: Ahead[dict[str, Tensor]] = Ahead(
            self._ask,
            connections=config.connections,
            batch_rows=min(config.batch_rows, int(info["max_rows"])),
            closing=closing,
        )

    @property
    def in_process(self) -> bool:
        """Never."""
        return False

    def signal(self, sequences: "Sequences") -> Hidden | TopK:
        """What the server says at the supervised positions, asked now unless :meth:`expect` did so already.

        Args:
            sequences: A batch; on any device, to which the signal comes back.

        Raises:
            SettingError: A token or length that the teacher does not take.
            TeacherError: No sound answer, after as many tries as the run file allows.
        """
        self._check(scored_rows(sequences))
        try:
            parts = self._ahead.answers(sequences)
        except SettingError as error:
            # The settings were good when training began; it is the server that changed.
            raise TeacherError(str(error)) from error
        return self._assembled(parts, sequences.tokens_BT.device)

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Ask ahead for these batches, in order; what was asked for and is not among them is given up."""
        self._ahead.expect(batches)

    def begin_step(self, step: int) -> None:
        """Nothing hangs on the step."""

    def fingerprint(self) -> str:
        """A hash of the server's model and of what is asked of it."""
        return hashlib.sha256(f"{self._info['fingerprint']}|{self._wish}".encode()).hexdigest()

    def statistics(self) -> dict[str, float]:
        """What asking has cost so far; the keys are those of :meth:`Ahead.statistics`."""
        return self._ahead.statistics()

    def close(self) -> None:
        """Give up what is asked for and let the threads end."""
        self._ahead.close()

    def probe(self) -> None:
        """Have a short row scored, so that what is wrong shows before training.

        Raises:
            SettingError: The server refuses it.
            TeacherError: No sound answer.
        """
        length = min(9, int(self._info["max_tokens"]))
        tokens = (torch.arange(length) * 7919 + 3) % self.vocab_size
        self._ask([ScoredRow(tokens, torch.arange(length - 1))])

    def _ask(self, rows: list[ScoredRow]) -> list[dict[str, Tensor]]:
        """What the server says of each row."""
        found: list[dict[str, Tensor]] = []
        for piece in self._pieces(rows):
            read = partial(read_answer, rows=piece, wish=self._wish, fingerprint=str(self._info["fingerprint"]))
            tensors = self._client.ask("POST", "/score", pack_request(piece, self._wish), read=read, kind=BINARY)
            counts = [len(row.places_n) for row in piece]
            split = {name: tensor.split(counts) for name, tensor in tensors.items()}
            found += [{name: parts[place] for name, parts in split.items()} for place in range(len(piece))]
        return found

    def _check(self, rows: list[ScoredRow]) -> None:
        for row in rows:
            largest, length, most = int(row.tokens_T.max()), len(row.tokens_T), int(self._info["max_tokens"])
            if largest >= self.vocab_size:
                raise SettingError(
                    f"token {largest} lies beyond the {self.vocab_size} ids that teacher and student share; remove it "
                    "from the data or its template"
                )
            if length > most:
                raise SettingError(
                    f"data.max_length: a row has {length} tokens, the teacher's server takes {most} (serve.max_tokens)"
                )

    def _pieces(self, rows: list[ScoredRow]) -> list[list[ScoredRow]]:
        """Rows, in order, in requests whose size the server takes."""
        each = bytes_per_token(self._wish, hidden_bytes=int(self._info["hidden_bytes"]))
        pieces: list[list[ScoredRow]] = []
        sent = returned = 0
        for row in rows:
            there, back = 8 * (len(row.tokens_T) + 2), each * len(row.places_n)
            # Room for the names and shapes around the numbers.
            full = sent + there + 4096 > self._info["max_request_bytes"]
            full = full or returned + back > self._info["max_answer_bytes"]
            if not pieces or full:
                pieces.append([])
                sent = returned = 0
            pieces[-1].append(row)
            sent, returned = sent + there, returned + back
        return pieces

    def _assembled(self, parts: list[dict[str, Tensor]], device: torch.device) -> Hidden | TopK:
        if self._head is not None:
            head = self._heads.get(device)
            if head is None:
                bias = None if self._head.bias is None else self._head.bias.to(device)
                weight, states = self._head.weight.to(device), self._head.states.to(device)
                head = Hidden(states, weight, bias=bias, scale=self._head.scale, softcap=self._head.softcap)
                self._heads[device] = head
            states = torch.cat([part["states"] for part in parts]).to(device) if parts else head.states
            return Hidden(states, head.weight, bias=head.bias, scale=head.scale, softcap=head.softcap)
        if not parts:
            empty = torch.empty((0, self._wish.top_k), device=device)
            return TopK(empty.to(torch.int64), empty, empty[:, 0])
        whole = {name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]}
        return TopK(whole["ids"].to(torch.int64), whole["log_probs"], whole["log_tail"])
