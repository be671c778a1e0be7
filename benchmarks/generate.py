"""Writing: this package's generator against transformers' ``generate``, both with a key-value cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from context import Context
from names import GENERATE, WRITER
from small import Pair, own_generator, pairs
from timing import Row, reason, wall_clock

from amidkd.config import SamplingConfig
from amidkd.generation import Prompts

__all__ = ["check", "run"]


def _peer(pair: Pair, prompts: list[list[int]], answer: int, temperature: float) -> Callable[[], list[list[int]]]:
    """Prompts padded on the left, in one batch."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=temperature > 0,
        **({"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}),
        max_new_tokens=answer,
        use_cache=True,
        pad_token_id=pair.tokenizer.pad_token_id,
        eos_token_id=pair.tokenizer.eos_token_id,
    )
    padded = pair.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(pair.student.device)
    width = padded["input_ids"].shape[1]

    def call() -> list[list[int]]:
        made = pair.student.generate(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], generation_config=settings
        )
        return made[:, width:].tolist()

    return call


def _own(pair: Pair, prompts: list[list[int]], answer: int, temperature: float) -> Callable[[], list[list[int]]]:
    count = len(prompts)
    config = SamplingConfig(temperature=temperature, max_new_tokens=answer, batch_size=count)
    generator = own_generator(pair, config, model=pair.student)
    asked = Prompts(tokens=prompts, limits=[answer] * count, streams=list(range(count)), seed=0)
    return lambda: generator(asked)


def check(calls: dict[str, Callable[[], list[list[int]]]], *, answer: int, greedy: bool) -> None:
    """Everybody writes as many tokens as were asked for; in greedy mode the same ones.

    Raises:
        RuntimeError: Somebody does not.
    """
    made = {name: call() for name, call in calls.items()}
    for name, answers in made.items():
        if any(len(ids) != answer for ids in answers):
            raise RuntimeError(f"{name} wrote answers that are not {answer} tokens long")
    if greedy and made[WRITER] != made[GENERATE]:
        differing = sum(ours != theirs for ours, theirs in zip(made[WRITER], made[GENERATE], strict=True))
        raise RuntimeError(f"greedy answers differ in {differing} of {len(made[WRITER])} rows")


def run(context: Context) -> Iterator[tuple[str, str, list[Row]]]:
    """Groups with the name of their yardstick and their rows."""
    sizes = context.sizes
    torch.manual_seed(context.seed)
    for name, make in pairs(sizes, device=context.device):
        found: Any = None
        why = ""
        try:
            found = make()
            found.student.eval()
        except Exception as error:  # Whatever keeps the models from being there is the rows' answer.
            why = reason(error)
        for mode, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            group = f"{name}, {mode}"
            calls: dict[str, Callable[[], list[list[int]]]] = {}
            missing = dict.fromkeys((GENERATE, WRITER), why) if why else {}
            tokens = 0
            if found is not None:
                prompts = found.prompts[: found.written]
                tokens = len(prompts) * sizes.answer
                calls = {
                    GENERATE: _peer(found, prompts, sizes.answer, temperature),
                    WRITER: _own(found, prompts, sizes.answer, temperature),
                }
                try:
                    check(calls, answer=sizes.answer, greedy=mode == "greedy")
                except RuntimeError as error:
                    calls, missing = {}, {GENERATE: str(error), WRITER: str(error)}
            rows = context.timed("generate", group, calls, rounds=sizes.rounds[2], missing=missing, timer=wall_clock)
            for row in rows:
                row.figures = {"tokens": float(tokens)} if row.rounds else {}
            yield group, GENERATE, rows
