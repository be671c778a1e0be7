"""Text from a running vLLM server, over its OpenAI-compatible interface with token ids on both sides."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, final

from amidkd.config import SamplingConfig
from amidkd.config.policy import VllmEngine
from amidkd.errors import SettingError
from amidkd.generation.base import GenerationError, Prompts
from amidkd.generation.ranks import agree_on
from amidkd.generation.vllm_common import Answer, VllmSampling, request_seed
from amidkd.generation.vllm_http import VllmClient
from amidkd.generation.vllm_weights import make_push

__all__ = ["VllmServerGenerator"]

# Requests in flight of one process; more would wait inside the server all the same.
_MOST_IN_FLIGHT = 256
_SAMPLE = "The quick brown fox jumps over 13 lazy dogs.\n\tdef f(x): return x**2  # π ≈ 3.14"


@final
class VllmServerGenerator:
    """Writes through a vLLM server (0.10.2 or later), each prompt in a request of its own.

    Greedy answers are those of the model itself, up to rounding; sampled ones have another random generator. The
    requests name every setting of the sampling, so the server's defaults play no part.

    Args:
        config: How the model is sampled, and the server (``engine``).
        model: The causal model, not wrapped for distribution; its weights are pushed as ``engine.weight_push`` says.
        tokenizer: The model's.
        eos_ids: Ids that end an answer; no other does.
        pad_id: Not used: requests are not padded.
        vocab_size: Ids from here on never come; None: the model's head decides.
        run_folder: Where weights for the server are kept, unless ``engine.weight_folder`` says.
        first: Whether this process writes files.
        rank: Number of this process; process 0 pushes weights.
        world: Number of processes.
        pause: Waits so many seconds between tries.
        agree: Shares a message, or None, with all processes and gives the first message; waits for all.

    Raises:
        SettingError: No server there, one with another vocabulary, too short a context or that does not speak ids;
            the token's variable is not set; weights cannot be pushed in the way asked for.
    """

    def __init__(
        self,
        config: SamplingConfig,
        *,
        model: Any,
        tokenizer: Any,
        eos_ids: Sequence[int],
        pad_id: int,
        vocab_size: int | None,
        run_folder: Path,
        first: bool,
        rank: int,
        world: int,
        pause: Callable[[float], None] = time.sleep,
        agree: Callable[[str | None], str | None] | None = None,
    ) -> None:
        if not isinstance(config.engine, VllmEngine):
            raise SettingError(f"engine.kind: {config.engine.kind} is no vLLM; set engine.kind: vllm")
        engine = config.engine
        self._sampling = VllmSampling.of(config, model, eos_ids, vocab_size)
        self._client = VllmClient(engine, pause=pause)
        self._push = make_push(engine, self._client, model=model, run_folder=run_folder)
        self._pushes = first and rank == 0
        self._agree = agree or agree_on(world)
        self._version: int | None = None
        self._lock, self._restored, self._stop = threading.Lock(), float("-inf"), threading.Event()
        try:
            self._client.get("/health")
            self._name, self._room = self._served_model()
            self._check_room(config.max_new_tokens)
            self._probe()
            if engine.weight_push == "none":
                self._check_tokenizer(tokenizer)
        except GenerationError as error:
            raise SettingError(f"engine.url: {error}") from error
        self._pool = ThreadPoolExecutor(min(config.batch_size, _MOST_IN_FLIGHT), thread_name_prefix="vllm")

    def __call__(self, prompts: Prompts, progress: Callable[[int, int], None] | None = None) -> list[list[int]]:
        """Ids of each answer, in the prompts' order.

        Raises:
            SettingError: A prompt that the model's or the server's context has no room for.
            GenerationError: The server is gone, or what it gave is not what was asked for.
        """
        limits = self._sampling.limits(prompts, self._room)
        self._stop.clear()
        futures = [
            self._pool.submit(self._one, tokens, limit, request_seed(prompts.seed, stream))
            for tokens, limit, stream in zip(prompts.tokens, limits, prompts.streams, strict=True)
        ]
        try:
            self._follow(futures, progress)
        except BaseException:
            self._stop.set()
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    def update_weights(self, version: int) -> None:
        """Process 0 pushes the weights while the others wait; all fail where it does.

        Raises:
            GenerationError: The server did not take them.
        """
        if version == self._version:
            return
        # No request may be under way while the weights change.
        self._agree(None)
        failure: Exception | None = None
        if self._pushes:
            try:
                self._push.push(version)
            except Exception as error:
                failure = error
        # Whatever it is, the others must hear of it, or else they would wait for ever.
        message = self._agree(None if failure is None else f"{failure}" or type(failure).__name__)
        if isinstance(failure, OSError):
            raise GenerationError(f"the student's weights could not be written: {failure}") from failure
        if failure is not None:
            raise failure
        if message is not None:
            raise GenerationError(message)
        self._push.hold(version)
        self._version = version

    def close(self) -> None:
        """End the threads; remove weights that were written for the server."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._push.close()

    def _follow(self, futures: list[Future[list[int]]], progress: Callable[[int, int], None] | None) -> None:
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=1.0, return_when=FIRST_EXCEPTION)
            made = [len(future.result()) for future in done]
            if made and progress is not None:
                progress(len(made), sum(made))

    def _one(self, prompt: Sequence[int], limit: int, seed: int) -> list[int]:
        if self._stop.is_set():
            raise GenerationError("another request of the batch failed")
        value = self._client.post("/v1/completions", self._body(prompt, limit, seed), back=self._restore)
        where = f"vLLM at {self._client.url}"
        return self._sampling.checked(self._answer(value, len(prompt), where), prompt, limit, where)

    def _restore(self, away: float) -> None:
        """After the server was away: its weights once more, unless another thread has begun to since."""
        if self._stop.is_set():
            raise GenerationError("another request of the batch failed")
        with self._lock:
            if self._restored <= away:
                begun = time.monotonic()
                self._push.restore()
                self._restored = begun

    def _body(self, prompt: Sequence[int], limit: int, seed: int) -> dict[str, Any]:
        body = self._sampling.arguments(limit, seed)
        if "logit_bias" in body:
            body["logit_bias"] = {str(token): value for token, value in body["logit_bias"].items()}
        return {
            "model": self._name,
            "prompt": list(prompt),
            "add_special_tokens": False,
            "return_token_ids": True,
            "stream": False,
            **body,
        }

    def _answer(self, value: Any, prompt_length: int, where: str) -> Answer:
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
            count = len(choices) if isinstance(choices, list) else "no"
            raise GenerationError(f"{where}: {count} answers came where one was asked for")
        choice = choices[0]
        if value.get("model") not in (None, self._name):
            raise GenerationError(f"{where}: model {value['model']!r} answered, but {self._name!r} was asked")
        if choice.get("index") != 0:
            raise GenerationError(f"{where}: the one answer has index {choice.get('index')!r}, not 0")
        if "token_ids" not in choice:
            raise GenerationError(f"{where}: no token_ids came; it takes vLLM 0.10.2 or later")
        ids, usage = choice["token_ids"], value.get("usage")
        if isinstance(usage, dict) and isinstance(ids, list):
            counted = (usage.get("prompt_tokens", prompt_length), usage.get("completion_tokens", len(ids)))
            if counted != (prompt_length, len(ids)):
                raise GenerationError(
                    f"{where}: it counts {counted[0]} and {counted[1]} tokens, but prompt and answer have "
                    f"{prompt_length} and {len(ids)}"
                )
        return Answer(
            ids=ids,
            prompt=choice.get("prompt_token_ids"),
            finish_reason=choice.get("finish_reason"),
            stop_reason=choice.get("stop_reason"),
        )

    def _served_model(self) -> tuple[str, int | None]:
        """Name and context of the model that is served; adapters beside it name it as their parent."""
        answer = self._client.get("/v1/models")
        cards = answer.get("data") if isinstance(answer, dict) else None
        for card in cards if isinstance(cards, list) else []:
            if isinstance(card, dict) and isinstance(card.get("id"), str) and card.get("parent") is None:
                room = card.get("max_model_len")
                return card["id"], room if isinstance(room, int) else None
        raise GenerationError(f"vLLM at {self._client.url}: /v1/models names no model")

    def _check_room(self, longest: int) -> None:
        if self._room is not None and self._room <= longest:
            raise GenerationError(
                f"vLLM at {self._client.url} holds {self._room} tokens, and answers alone may have {longest}; start it "
                "with a larger --max-model-len, or lower max_new_tokens"
            )

    def _probe(self) -> None:
        """One short answer, to a prompt with the largest id: the server knows it, reads ids as sent and gives ids."""
        top = self._sampling.vocab_size - 1
        body = self._body([0, top], 1, 0)
        value = self._client.post("/v1/completions", body)
        where = f"vLLM at {self._client.url}"
        answer = self._answer(value, 2, where)
        if answer.prompt is None:
            raise GenerationError(f"{where}: no prompt_token_ids came; it takes vLLM 0.10.2 or later")
        self._sampling.checked(answer, [0, top], 1, where)

    def _check_tokenizer(self, tokenizer: Any) -> None:
        """Without a push the server's model is its own: see that a text has the same ids there."""
        own = [int(token) for token in tokenizer.encode(_SAMPLE, add_special_tokens=False)]
        answer = self._client.post("/tokenize", {"model": self._name, "prompt": _SAMPLE, "add_special_tokens": False})
        theirs = answer.get("tokens") if isinstance(answer, dict) else None
        if theirs != own:
            raise GenerationError(
                f"vLLM at {self._client.url} has another tokenizer: a sample text is {str(theirs)[:80]} there and "
                f"{str(own)[:80]} here; serve the same model"
            )
