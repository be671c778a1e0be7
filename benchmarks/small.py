"""Small models with prompts for them: made from a configuration, or the real ones beside the repository."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from names import MADE, REAL
from sizes import Sizes

from amidkd.config import SamplingConfig
from amidkd.generation import Generator, make_generator

__all__ = ["Pair", "made_pair", "own_generator", "pairs", "quiet", "real_pair", "small_llama"]

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
"""Real data and small real models; not part of the package."""

STUDENT, TEACHER = "llama2xs-279K-hf", "stories260K-hf"

NEVER = "<never>"
"""EOS of every tokenizer here: an id just beyond the models' heads, so that all answers have one length."""


@dataclass(frozen=True)
class Pair:
    """A student, its teacher, and prompts for them.

    Args:
        name: Which models.
        student: To be copied by whoever trains it.
        teacher: Frozen.
        tokenizer: Of both; its EOS is an id that the models cannot write.
        texts: Prompts.
        prompts: Their token ids.
        vocabulary: V of both models.
        written: Prompts in a batch of the section that only writes.
        passes: Sequences in a forward pass of training.
    """

    name: str
    student: Any
    teacher: Any
    tokenizer: Any
    texts: list[str]
    prompts: list[list[int]]
    vocabulary: int
    written: int
    passes: int

    def new_student(self) -> Any:
        """A student as it was at the start."""
        return copy.deepcopy(self.student)


def own_generator(pair: Pair, config: SamplingConfig, *, model: Any) -> Generator:
    """This package's engine in this process."""
    return make_generator(
        config,
        model=model,
        tokenizer=pair.tokenizer,
        eos_ids=[pair.tokenizer.eos_token_id],
        pad_id=pair.tokenizer.pad_token_id,
        vocab_size=pair.vocabulary,
        run_folder=Path(),
        first=True,
        rank=0,
        world=1,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the advice that trainers give their users, and without progress bars."""
    from transformers.utils import logging as transformers_logging

    before = logging.root.manager.disable
    bars = transformers_logging.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if bars:
            transformers_logging.enable_progress_bar()


def pairs(sizes: Sizes, *, device: str) -> list[tuple[str, Callable[[], Pair]]]:
    """Names of the pairs, and how each is made.

    Args:
        sizes: How large.
        device: Where the models go.
    """
    dtype = getattr(torch, sizes.dtypes[0])
    return [
        (MADE, lambda: made_pair(sizes, device=device, dtype=dtype)),
        (REAL, lambda: real_pair(sizes, device=device)),
    ]


def small_llama(width: int, sizes: Sizes, *, device: str, dtype: torch.dtype, positions: int, use_cache: bool) -> Any:
    """A Llama with random weights.

    Args:
        width: Hidden size.
        sizes: Its vocabulary and layers.
        device: Where it goes.
        dtype: Of its weights.
        positions: Its longest text.
        use_cache: Whether it keeps keys and values unless told otherwise.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=sizes.step_layers,
        num_attention_heads=max(2, width // 64),
        num_key_value_heads=max(2, width // 64),
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        use_cache=use_cache,
    )
    return LlamaForCausalLM(config).to(device, dtype)


def made_pair(sizes: Sizes, *, device: str, dtype: torch.dtype) -> Pair:
    """Two small Llamas from their configurations, the teacher twice as wide, and prompts of made-up words."""
    made = {"device": device, "dtype": dtype, "positions": sizes.prompt + sizes.answer, "use_cache": True}
    student, teacher = (small_llama(width * sizes.step_width, sizes, **made) for width in (1, 2))
    lengths = range(max(2, sizes.prompt // 2), sizes.prompt + 1)
    ids = torch.randint(3, sizes.vocabulary, (sizes.texts, sizes.prompt)).tolist()
    texts = [
        " ".join(f"w{token}" for token in row[:length])
        for row, length in zip(ids, islice(cycle(lengths), sizes.texts), strict=True)
    ]
    return _pair(MADE, student, teacher, _words(sizes.vocabulary), texts, (sizes.written, sizes.passes))


def real_pair(sizes: Sizes, *, device: str) -> Pair:
    """Two models that were trained on children's stories, and the beginnings of such stories.

    Raises:
        FileNotFoundError: The folder beside the repository is not there.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = SHARED / "data" / "tinystories_dev.jsonl"
    for path in (SHARED / "models" / STUDENT, SHARED / "models" / TEACHER, file):
        if not path.exists():
            raise FileNotFoundError(f"needs ../shared/{path.relative_to(SHARED)}")
    with quiet():
        student, teacher = (
            AutoModelForCausalLM.from_pretrained(SHARED / "models" / name, dtype=torch.float32).to(device)
            for name in (STUDENT, TEACHER)
        )
    with file.open(encoding="utf-8") as lines:
        stories = [json.loads(line)["text"].split() for line in islice(lines, sizes.texts)]
    counts = islice(cycle(range(5, 13)), len(stories))
    texts = [" ".join(story[:count]) for story, count in zip(stories, counts, strict=True)]
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / STUDENT)
    return _pair(REAL, student, teacher, tokenizer, texts, (sizes.real_written, sizes.real_passes))


def _words(vocabulary: int) -> Any:
    """A tokenizer with a word for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    ids = {word: index for index, word in enumerate([*special, *(f"w{n}" for n in range(3, vocabulary))])}
    words = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _pair(name: str, student: Any, teacher: Any, tokenizer: Any, texts: list[str], batches: tuple[int, int]) -> Pair:
    vocabulary = student.config.vocab_size
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.convert_ids_to_tokens(0)
    tokenizer.add_special_tokens({"eos_token": NEVER})
    if tokenizer.eos_token_id < vocabulary:
        raise ValueError(f"{name}: EOS must be an id that the models cannot write; got {tokenizer.eos_token_id}")
    for model in (student, teacher.eval().requires_grad_(False)):
        for settings in (model.config, model.generation_config):
            settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return Pair(
        name=name,
        student=student,
        teacher=teacher,
        tokenizer=tokenizer,
        texts=texts,
        prompts=[list(ids) for ids in tokenizer(texts)["input_ids"]],
        vocabulary=vocabulary,
        written=batches[0],
        passes=batches[1],
    )
