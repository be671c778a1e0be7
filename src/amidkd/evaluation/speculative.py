"""The student as a draft model: what the teacher keeps of its tokens in speculative decoding.

The student drafts γ tokens; the teacher judges them in one pass, from the first on, and keeps each with probability
min(1, p/q) until one fails. So a token that is judged is kept with probability Σ min(p, q) = 1 − TV(p, q) at its
position: the mean of that over the judged positions is what the measured rate is an estimate of. If β is constant, a
step of the teacher gives (1 − β^(γ+1))/(1 − β) tokens.

Source: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023, corollary 3.6, equation 1.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amidkd.errors import SettingError
from amidkd.evaluation.narrow import narrowed
from amidkd.evaluation.statistics import Scores
from amidkd.models import evaluating
from amidkd.models.facts import base_of
from amidkd.models.generate import answer_limits

__all__ = ["Drafts", "draft", "tokens_per_step"]


def tokens_per_step(rate: float, draft_tokens: int) -> float:
    """(1 − β^(γ+1))/(1 − β): tokens that a pass of the teacher gives, the one that it adds itself included.

    Args:
        rate: β, the share of judged tokens that is kept, in [0, 1].
        draft_tokens: γ.

    Example:
        >>> tokens_per_step(0.5, 2)
        1.75
    """
    return float(sum(rate**power for power in range(draft_tokens + 1)))


@dataclass(frozen=True)
class Drafts:
    """What became of the student's drafts, prompt by prompt.

    Args:
        drafted: Tokens drafted [P].
        judged: Those that the teacher came to: all up to the first that it did not keep [P].
        accepted: Those that it kept [P].
        overlap: Σ of 1 − TV over the judged positions [P].
        steps: Passes of the teacher [P].
        tokens: Tokens of the answers [P].
        seconds: Time of assisted generation.
        alone_tokens: Tokens of the teacher's answers to the same prompts without a draft.
        alone_seconds: Time that these took.
        draft_tokens: γ.
    """

    drafted: list[int]
    judged: list[int]
    accepted: list[int]
    overlap: list[float]
    steps: list[int]
    tokens: list[int]
    seconds: float
    alone_tokens: int
    alone_seconds: float
    draft_tokens: int

    def scores(self, prompts: int) -> dict[str, Scores]:
        """Both acceptance rates of every prompt.

        Args:
            prompts: How many there are; those beyond the drafted ones have a count of 0.
        """
        rest = [0] * (prompts - len(self.judged))
        counts = np.array([*self.judged, *rest], dtype=float)
        return {
            "acceptance_measured": Scores(np.array([*self.accepted, *rest], dtype=float), counts),
            "acceptance_predicted": Scores(np.array([*self.overlap, *rest], dtype=float), counts),
        }

    def to_json(self) -> dict[str, Any]:
        """As a record holds it."""
        rate = sum(self.overlap) / sum(self.judged)
        speed, alone = sum(self.tokens) / self.seconds, self.alone_tokens / self.alone_seconds
        return {
            "prompts": len(self.judged),
            "draft_tokens": self.draft_tokens,
            "drafted": sum(self.drafted),
            "judged": sum(self.judged),
            "accepted": sum(self.accepted),
            "tokens": sum(self.tokens),
            "teacher_steps": sum(self.steps),
            "tokens_per_step": sum(self.tokens) / sum(self.steps),
            "tokens_per_step_predicted": tokens_per_step(rate, self.draft_tokens),
            "tokens_per_second": speed,
            "tokens_per_second_teacher_alone": alone,
            "speedup": speed / alone,
        }


def draft(
    student: Any,
    teacher: Any,
    prompts: Sequence[Sequence[int]],
    *,
    vocab_size: int,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    draft_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> Drafts:
    """Have the teacher answer with the student's drafts (transformers' assisted generation), and count.

    Args:
        student: The draft model.
        teacher: The model whose answers they are.
        prompts: Token ids of each prompt.
        vocab_size: Shared vocabulary; both heads are cut to it.
        eos_ids: Ids that end an answer.
        max_new_tokens: Longest answer.
        draft_tokens: γ, tokens drafted at a time.
        temperature: Of both models, above 0.
        seed: Seed of the sampling.
        progress: Called with 1 for each prompt.

    Raises:
        SettingError: A model has a state that cannot be taken back; no prompt leaves room for a draft.
    """
    for side, model in (("student", student), ("teacher", teacher)):
        if getattr(base_of(model), "_is_stateful", False):
            raise SettingError(
                f"assisted generation takes tokens back, and the state of the {side} "
                f"({type(base_of(model)).__name__}) cannot be"
            )
    longest = [max_new_tokens] * len(prompts)
    limits = [min(pair) for pair in zip(*(answer_limits(m, prompts, longest) for m in (student, teacher)), strict=True)]
    # Where a pad token is another than EOS, transformers takes it for padding in what the student has drafted.
    settings: dict[str, Any] = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_assistant_tokens": draft_tokens,
    }
    settings |= {"eos_token_id": list(eos_ids), "pad_token_id": eos_ids[0] if eos_ids else None}
    counts = _Counts()
    seconds, alone_seconds, alone_tokens = 0.0, 0.0, 0
    # A draft leaves one token to the teacher.
    for number, limit in enumerate(limits):
        if limit < 2:
            raise SettingError(f"prompt {number} leaves no room for a draft in the models' context")
    with _ready((student, teacher), vocab_size, temperature, settings):
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            with _Watch(student, teacher) as watch:
                answer, took = _answer(teacher, prompt, limit, seed + number, assistant=student)
            counts.add(answer, watch.rounds)
            seconds += took
            answer, took = _answer(teacher, prompt, limit, seed + number)
            alone_seconds += took
            alone_tokens += len(answer)
            if progress is not None:
                progress(1)
    if not sum(counts.judged):
        raise SettingError("the student drafted nothing: every answer ended at its first token")
    return Drafts(
        counts.drafted, counts.judged, counts.accepted, counts.overlap, counts.steps, counts.tokens,
        seconds, alone_tokens, alone_seconds, draft_tokens,
    )  # fmt: skip


@dataclass(frozen=True)
class _Round:
    """One pass of the teacher: the tokens that it judged, and 1 − TV at each."""

    drafted: list[int]
    overlap: list[float]


@dataclass
class _Counts:
    drafted: list[int] = field(default_factory=list)
    judged: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def add(self, answer: list[int], rounds: Sequence[_Round]) -> None:
        """Follow an answer round by round. A token that is not kept is never drawn in its own place: p < q there."""
        place, judged, accepted, overlap = 0, 0, 0, 0.0
        for turn in rounds:
            kept = 0
            for ours, theirs in zip(turn.drafted, answer[place:], strict=False):
                if ours != theirs:
                    break
                kept += 1
            seen = min(kept + 1, len(turn.drafted))
            judged, accepted, overlap = judged + seen, accepted + kept, overlap + sum(turn.overlap[:seen])
            place += kept + 1
        self.drafted.append(sum(len(turn.drafted) for turn in rounds))
        self.judged.append(judged)
        self.accepted.append(accepted)
        self.overlap.append(overlap)
        self.steps.append(len(rounds))
        self.tokens.append(len(answer))


class _Watch:
    """Listens to both models: a pass of the student is a drafted token, a pass of the teacher a round."""

    def __init__(self, student: Any, teacher: Any) -> None:
        self._handles = [
            base_of(student).register_forward_hook(self._draws),
            base_of(teacher).register_forward_hook(self._judges, with_kwargs=True),
        ]
        self._drafts: list[Tensor] = []
        self.rounds: list[_Round] = []

    def __enter__(self) -> "_Watch":
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _draws(self, _model: Any, _inputs: Any, output: Any) -> None:
        self._drafts.append(output.logits[0, -1:].float().softmax(-1))

    def _judges(self, _model: Any, _inputs: Any, kwargs: dict[str, Any], output: Any) -> None:
        count = len(self._drafts)
        if count == 0:
            self.rounds.append(_Round([], []))
            return
        tokens = kwargs["input_ids"][0, -count:].tolist()
        p = output.logits[0, -count - 1 : -1].float().softmax(-1)
        q = torch.cat(self._drafts).to(p.device)
        self.rounds.append(_Round(tokens, torch.minimum(p, q).sum(-1).tolist()))
        self._drafts = []


@contextmanager
def _ready(models: Sequence[Any], vocab_size: int, temperature: float, settings: Mapping[str, Any]) -> Iterator[None]:
    """Models in evaluation mode, cut to the shared vocabulary, with no generation settings but these."""
    from transformers import GenerationConfig

    # A fixed number of drafted tokens, whatever the student's confidence.
    fixed = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}

    def cool(_model: Any, _inputs: Any, output: Any) -> Any:
        # Of its own temperature, transformers (5.23) applies the square to the student.
        output.logits = output.logits / temperature
        return output

    with ExitStack() as stack:
        devices = sorted({p.device.index or 0 for model in models for p in model.parameters() if p.is_cuda})
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.no_grad())
        for model in models:
            base = base_of(model)
            stack.enter_context(evaluating(model))
            stack.enter_context(narrowed(model, vocab_size))
            stack.callback(setattr, base, "generation_config", base.generation_config)
            base.generation_config = GenerationConfig(**settings, **fixed)
            if temperature != 1:
                stack.callback(base.register_forward_hook(cool).remove)
        yield


def _answer(
    teacher: Any, prompt: Sequence[int], limit: int, seed: int, assistant: Any = None
) -> tuple[list[int], float]:
    """One answer of the teacher, and the seconds that it took."""
    device = next(teacher.parameters()).device
    ids = torch.tensor([list(prompt)], device=device)
    extra = {} if assistant is None else {"assistant_model": base_of(assistant)}
    torch.manual_seed(seed)
    started = time.perf_counter()
    tokens = base_of(teacher).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, **extra)
    answer = tokens[0, len(prompt) :].tolist()
    return answer, time.perf_counter() - started
