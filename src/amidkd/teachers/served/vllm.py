"""A vLLM server as a teacher: it scores the tokens that it is sent (``prompt_logprobs``)."""

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, final

import torch

from amidkd.config import ServedTeacher
from amidkd.errors import SettingError, TeacherError
from amidkd.models import load_tokenizer
from amidkd.signals import TopK
from amidkd.teachers.served.ahead import Ahead
from amidkd.teachers.served.http import TeacherClient
from amidkd.teachers.served.protocol import ScoredRow
from amidkd.teachers.served.vllm_answer import Scores, WrongAnswerError, joined, read_choices
from amidkd.teachers.vocabulary import prove_same_vocabulary

if TYPE_CHECKING:
    from amidkd.data import Sequences

__all__ = ["VllmTeacher", "connect_vllm"]

_SAMPLE = "The quick brown fox jumps over 13 lazy dogs.\n\tdef f(x): return x**2  # 100 %"
_PROBE_TOKENS = 24
_SAME = 0.1
"""What a probability of the probe may differ by from answer to answer: batches of other sizes round differently."""
_PLAIN = {
    "n": 1,
    "max_tokens": 1,
    # At these, log-probabilities before and after sampling's own changes are the same, whichever the server gives.
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "add_special_tokens": False,
    "return_token_ids": True,
    "stream": False,
}

_FIX = (
    "The server must score exactly the tokens that it is sent: start it with --logprobs-mode processed_logprobs and "
    "--no-enable-prefix-caching, at vLLM 0.17 or later"
)


@final
class VllmTeacher:
    """A model on a vLLM server.

    With every request goes a short probe whose scores are known from the start: a server that was started anew with
    another model is found out, whatever it calls itself.

    Args:
        config: The run file's section.
        client: HTTP to the server.
        model: Name of the model there.
        vocab_size: Vocabulary shared with the student.
        probe: Tokens that are scored with each request.
        closing: Set when the teacher is closed.

    Raises:
        SettingError: The server does not score what it is sent; the message says what is wrong and what to change.
        TeacherError: It does not answer.
    """

    def __init__(
        self,
        config: ServedTeacher,
        client: TeacherClient,
        *,
        model: str,
        vocab_size: int,
        probe: Sequence[int],
        closing: threading.Event,
    ) -> None:
        self.vocab_size = vocab_size
        self._config, self._client, self._model = config, client, model
        self._k = min(config.top_k, vocab_size)
        self._probe = ScoredRow(torch.tensor(probe), torch.arange(len(probe) - 1))
        self._known = self._examine()
        self._ahead: Ahead[Scores] = Ahead(
            self._ask, connections=config.connections, batch_rows=config.batch_rows, closing=closing
        )

    @property
    def in_process(self) -> bool:
        """It is elsewhere."""
        return False

    def signal(self, sequences: "Sequences") -> TopK:
        """The likeliest tokens at the supervised positions, and the mass of the rest.

        Args:
            sequences: A batch; on any device, to which the signal comes back.

        Raises:
            SettingError: The server refuses a row: it is longer than the server's context.
            TeacherError: No answer, or one of other tokens or another model.
        """
        scores = self._ahead.answers(sequences)
        signal = joined(scores, vocab_size=self.vocab_size, k=self._k, device=sequences.tokens_BT.device)
        assert signal.ids.shape[0] == sequences.token_count()
        return signal

    def expect(self, batches: Sequence["Sequences"]) -> None:
        """Ask for batches ahead."""
        self._ahead.expect(batches)

    def begin_step(self, step: int) -> None:
        """Nothing hangs on the step."""

    def fingerprint(self) -> str:
        """SHA-256 of the model's name there, its tokenizer, k and the shared vocabulary."""
        decides = ["vllm", self._model, self._config.model, self._k, self.vocab_size]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def statistics(self) -> dict[str, float]:
        """What asking has cost so far; the keys are those of :meth:`Ahead.statistics`."""
        return self._ahead.statistics()

    def close(self) -> None:
        """Let the threads go."""
        self._ahead.close()

    def _examine(self) -> Scores:
        """Score the probe, and say what to change where that goes wrong."""
        where = f"teacher at {self._client.url}"
        try:
            (scores,) = self._scored([self._probe], self._k)
        except SettingError as error:
            self._explain_refusal(error)
            raise
        except WrongAnswerError as error:
            raise SettingError(f"{where}: a probe of {len(self._probe.tokens_T)} tokens: {error}. {_FIX}") from error
        least = min(1.0, self._k / self.vocab_size) * 0.5
        total = float(scores.log_probs.exp().sum(-1).min())
        if total < least:
            raise SettingError(
                f"{where}: the {self._k} likeliest of {self.vocab_size} tokens have a probability of {total:.3g} "
                f"together, less than as many equal parts would; these are no log-probabilities. {_FIX}"
            )
        return scores

    def _explain_refusal(self, error: SettingError) -> None:
        """Say that k is too large, where the server takes a smaller one."""
        try:
            self._scored([self._probe], 1)
        except (SettingError, WrongAnswerError):
            return
        raise SettingError(
            f"teacher.top_k = {self._k} is more than the server allows ({error}); start it with "
            f"--max-logprobs {self._k}, or lower top_k (vLLM's default is 20)"
        ) from error

    def _ask(self, rows: list[ScoredRow]) -> list[Scores]:
        where = f"teacher at {self._client.url}"
        try:
            probe, *scores = self._scored([self._probe, *rows], self._k)
        except WrongAnswerError as error:
            raise TeacherError(f"{where}: {error}; nothing of this answer was used") from error
        if not self._same(probe):
            raise TeacherError(
                f"{where}: it scores a probe otherwise than at the start of the run; was it started anew with another "
                "model? Start it with the first one, then resume"
            )
        return scores

    def _same(self, probe: Scores) -> bool:
        """Whether a probe's likeliest tokens have the probabilities that they had."""
        then, now = self._known.log_probs.exp(), probe.log_probs.exp()
        match = self._known.ids[:, :, None] == probe.ids[:, None, :]
        gone = (then - (match * now[:, None, :]).sum(2)).abs().max()
        come = (now - (match * then[:, :, None]).sum(1)).abs().max()
        return bool(max(gone, come) <= _SAME)

    def _scored(self, rows: list[ScoredRow], k: int) -> list[Scores]:
        body = {
            **_PLAIN,
            "model": self._model,
            "prompt": [row.tokens_T.tolist() for row in rows],
            "prompt_logprobs": k,
        }
        return self._client.post_json(
            "/v1/completions", body, read=lambda value: read_choices(value, rows, model=self._model, k=k)
        )


def connect_vllm(
    config: ServedTeacher,
    *,
    student_tokenizer: Any,
    device: Any = None,
    pause: Callable[[float], None] | None = None,
) -> VllmTeacher:
    """Find a vLLM server, prove that it shares the student's vocabulary and that it scores what it is sent.

    Args:
        config: The run file's section.
        student_tokenizer: What the sequences are made with.
        device: Not used: a signal goes where its batch is.
        pause: Waits so many seconds between tries; None: that long, or until the teacher is closed.

    Raises:
        SettingError: The server has not the model, refuses k, or scores wrongly; the tokenizers differ.
        TeacherError: No server answers.
    """
    assert config.model is not None
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    shared = prove_same_vocabulary(teacher=tokenizer, student=student_tokenizer)
    closing = threading.Event()

    def wait(seconds: float) -> None:
        if closing.wait(seconds):
            raise TeacherError("the teacher was closed")

    client = TeacherClient(config, pause=wait if pause is None else pause)
    model = _served(client, config.served_name)
    probe = _probe_of(tokenizer, shared)
    return VllmTeacher(config, client, model=model, vocab_size=shared, probe=probe, closing=closing)


def _served(client: TeacherClient, wanted: str | None) -> str:
    """The name of the model; adapters beside it name it as their parent."""
    answer = client.get_json("/v1/models")
    cards = answer.get("data") if isinstance(answer, dict) else None
    known = [card for card in cards or [] if isinstance(card, dict) and isinstance(card.get("id"), str)]
    names = [card["id"] for card in known]
    where = f"teacher at {client.url}"
    if not names:
        raise SettingError(f"{where}: /v1/models names no model; is this a vLLM server (`api: vllm`)?")
    if wanted is not None:
        if wanted not in names:
            raise SettingError(f"teacher.served_name = {wanted!r}: {where} serves {', '.join(names)}")
        return wanted
    bases = [card["id"] for card in known if card.get("parent") is None]
    if len(bases) != 1:
        raise SettingError(f"{where} serves {', '.join(names)}; say which in teacher.served_name")
    return bases[0]


def _probe_of(tokenizer: Any, shared: int) -> list[int]:
    """A sample text's tokens and the last id that both sides know."""
    ids = [int(token) for token in tokenizer.encode(_SAMPLE, add_special_tokens=False) if token < shared]
    return [*ids[:_PROBE_TOKENS], shared - 1]
