"""Rows to tokens. The one place that decides what is supervised, where EOS goes and what is cut."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

from amidkd.config import DataConfig
from amidkd.data.chat import Chat
from amidkd.data.rows import Row
from amidkd.data.sequences import Example, Origin
from amidkd.data.templates import INSTRUCTION, fill, find_template
from amidkd.errors import SettingError, SettingWarning

__all__ = ["Encoded", "Encoder", "special_prefix"]

LONG_PROMPT = "prompt over the limit"
NOTHING_SUPERVISED = "no supervised token"


@dataclass(frozen=True)
class Encoded:
    """What a list of rows became.

    Args:
        examples: Rows with a label.
        prompts: Rows without one, for the teacher to answer.
        dropped: Reason → number of rows left out.
        truncated: Number of examples whose end was cut at ``data.max_length``; they have no EOS.
    """

    examples: list[Example]
    prompts: list[Row]
    dropped: dict[str, int]
    truncated: int


@dataclass(frozen=True)
class _Draft:
    """A row as tokens before anything is cut: a prompt, and what follows it with its targets."""

    row: Row
    prompt: list[int]
    answer: list[int]
    targets: list[bool]


class Encoder:
    """Turns rows into examples.

    Prompt and completion are tokenized apart and joined, so the boundary between them is exact: supervised are the
    completion's tokens and EOS, also where EOS is the pad token. Of a conversation, every assistant turn is supervised
    with the token that ends it; of plain text, all tokens but the first.

    Args:
        tokenizer: A tokenizer of ``transformers``; its truncation and padding settings are not used.
        config: The run file's ``data``.

    Attributes:
        prompt_limit: Tokens of the longest prompt.

    Raises:
        SettingError: A template without its placeholder; a tokenizer without EOS.
    """

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        if tokenizer.eos_token_id is None:
            raise SettingError(
                "the tokenizer has no EOS token, so no answer could end; set `eos_token` in its tokenizer_config.json"
            )
        self.tokenizer, self.config = tokenizer, config
        self.eos_id = int(tokenizer.eos_token_id)
        self._prompt_template = find_template(config.prompt_template, "prompt", "data.prompt_template")
        self._completion_template = find_template(config.completion_template, "completion", "data.completion_template")
        self._chat = Chat(tokenizer)
        self._prefix = special_prefix(tokenizer)
        own_words = self._prompt_template not in (None, INSTRUCTION)
        adds = config.add_special_tokens
        self._adds_prefix = adds if adds is not None else not own_words
        self.prompt_limit = min(config.max_prompt_length or config.max_length - 1, config.max_length - 1)
        self._warn_of_missing_prefix(own_words)

    def prompt_text(self, row: Row) -> str:
        """A row's prompt in its template, without special tokens; a conversation is not text but messages.

        Raises:
            SettingError: The row has no prompt.
        """
        if row.prompt is None:
            raise SettingError(f"{row.where}: no `prompt` to answer")
        return fill(self._prompt_template, "prompt", row.prompt)

    def prompt_tokens(self, row: Row) -> list[int] | None:
        """Tokens that the answer follows, or None where ``data.long_prompts`` drops the row.

        Args:
            row: A prompt with or without completion, or a conversation; its last assistant turn is left out.

        Raises:
            SettingError: Plain text; a prompt over the limit, where that is an error; an empty prompt.
        """
        return self.prompts_tokens([row])[0]

    def prompts_tokens(self, rows: Sequence[Row]) -> list[list[int] | None]:
        """:meth:`prompt_tokens` of many rows, which is faster together."""
        bare = iter(self._ids([self.prompt_text(row) for row in rows if row.messages is None]))
        found: list[list[int] | None] = []
        for row in rows:
            if row.messages is not None:
                tokens = self._chat.prompt(row.messages[:-1] if row.labelled else row.messages, row.where)
            else:
                tokens = self._with_prefix(next(bare))
            if not tokens:
                raise SettingError(
                    f"{row.where}: the prompt has no token to continue from; give it text, or a template with BOS"
                )
            found.append(self._within_limit(tokens, row.where))
        return found

    def completion_text(self, tokens: Sequence[int]) -> str:
        """Tokens of an answer as text, without special tokens and without the completion's template."""
        text = str(self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        if self._completion_template is None:
            return text
        before, after = self._completion_template.split("{completion}", 1)
        return text.removeprefix(before).removesuffix(after)

    def example(self, row: Row) -> Example | None:
        """One labelled row as an example; None where it is dropped.

        Raises:
            SettingError: The row has no label, or cannot be used.
        """
        if not row.labelled:
            raise SettingError(f"{row.where}: no `completion`")
        return next(iter(self.encode([row]).examples), None)

    def example_from_tokens(
        self, row_index: int, prompt_tokens: Sequence[int], answer_tokens: Sequence[int], origin: Origin
    ) -> Example | None:
        """An example from ids: all of the answer is supervised; nothing is appended, the end is cut at the limit.

        Args:
            row_index: ``Row.index`` of the row.
            prompt_tokens: Ids of the prompt.
            answer_tokens: Ids of the answer, with EOS where the writer ended it.
            origin: Who wrote the answer.

        Returns:
            The example, or None where no token of it is supervised.
        """
        return self._joined(row_index, list(prompt_tokens), list(answer_tokens), [True] * len(answer_tokens), origin)

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Turn rows into examples and prompts, counting what is left out.

        Raises:
            SettingError: A row that cannot be used; the message names its file and line.
        """
        examples: list[Example] = []
        prompts: list[Row] = []
        dropped: Counter[str] = Counter()
        truncated = 0
        self._warn_of_idle_templates(rows)
        for draft in self._drafts(rows):
            prompt = self._within_limit(draft.prompt, draft.row.where) if draft.row.text is None else draft.prompt
            if prompt is None:
                dropped[LONG_PROMPT] += 1
                continue
            if not draft.row.labelled:
                prompts.append(draft.row)
                continue
            example = self._joined(draft.row.index, prompt, draft.answer, draft.targets, "data")
            if example is None:
                dropped[NOTHING_SUPERVISED] += 1
                continue
            examples.append(example)
            truncated += len(example.tokens) < len(prompt) + len(draft.answer)
        return Encoded(examples, prompts, dict(dropped), truncated)

    def _joined(
        self, index: int, prompt: list[int], answer: list[int], targets: list[bool], origin: Origin
    ) -> Example | None:
        tokens = [*prompt, *answer][: self.config.max_length]
        # Nothing comes before the first token that could predict it.
        marks = [False] * len(prompt) + targets if prompt else [False, *targets[1:]]
        marks = marks[: len(tokens)]
        return Example(tuple(tokens), tuple(marks), index, origin) if any(marks) else None

    def _drafts(self, rows: Sequence[Row]) -> list[_Draft]:
        bare = [row for row in rows if row.prompt is not None]
        prompts = iter(self._ids([self.prompt_text(row) for row in bare]))
        answers = iter(
            self._ids(
                [fill(self._completion_template, "completion", r.completion) for r in bare if r.completion is not None]
            )
        )
        texts = iter(self._ids([row.text for row in rows if row.text is not None]))
        drafts = []
        for row in rows:
            if row.messages is not None:
                drafts.append(self._conversation(row, row.messages))
            elif row.prompt is not None:
                prompt = self._with_prefix(next(prompts))
                answer = next(answers) if row.completion is not None else []
                answer = self._with_eos(answer) if row.labelled and row.finished else answer
                drafts.append(_Draft(row, prompt, answer, [True] * len(answer)))
            else:
                answer = self._with_eos(next(texts))
                prefix = self._prefix if answer[: len(self._prefix)] != self._prefix else []
                drafts.append(_Draft(row, prefix, answer, [True] * len(answer)))
        return drafts

    def _conversation(self, row: Row, messages: list[dict[str, Any]]) -> _Draft:
        if not row.labelled:
            return _Draft(row, self._chat.prompt(messages, row.where), [], [])
        tokens, spoken, ended = self._chat.conversation(messages, row.where)
        if not ended:
            tokens, spoken = [*tokens, self.eos_id], [*spoken, True]
        first = spoken.index(True) if any(spoken) else len(spoken)
        return _Draft(row, tokens[:first], tokens[first:], spoken[first:])

    def _within_limit(self, tokens: list[int], where: str) -> list[int] | None:
        limit = self.prompt_limit
        if len(tokens) <= limit:
            return tokens
        if self.config.long_prompts == "drop":
            return None
        if self.config.long_prompts == "keep_start":
            return tokens[:limit]
        if self.config.long_prompts == "keep_end":
            # BOS stays: models are lost without it.
            kept = self._prefix if tokens[: len(self._prefix)] == self._prefix and len(self._prefix) < limit else []
            return [*kept, *tokens[len(tokens) - limit + len(kept) :]]
        raise SettingError(
            f"{where}: the prompt has {len(tokens)} tokens, over the limit of {limit} (data.max_prompt_length, or "
            "data.max_length − 1); raise the limit, or set data.long_prompts to `drop`, `keep_end` or `keep_start`"
        )

    def _with_prefix(self, tokens: list[int]) -> list[int]:
        if not self._adds_prefix or tokens[: len(self._prefix)] == self._prefix:
            return tokens
        return [*self._prefix, *tokens]

    def _with_eos(self, tokens: list[int]) -> list[int]:
        return tokens if tokens and tokens[-1] == self.eos_id else [*tokens, self.eos_id]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _warn_of_missing_prefix(self, own_words: bool) -> None:
        template = self._prompt_template
        if not own_words or template is None or not self._prefix or self.config.add_special_tokens is not None:
            return
        if self._ids([fill(template, "prompt", "a")])[0][: len(self._prefix)] != self._prefix:
            names = " ".join(self.tokenizer.convert_ids_to_tokens(self._prefix))
            warn(
                f"data.prompt_template: the tokenizer starts a text with {names}, and the template does not; set "
                "data.add_special_tokens to true, or to false if that is meant",
                SettingWarning,
                stacklevel=3,
            )

    def _warn_of_idle_templates(self, rows: Sequence[Row]) -> None:
        given = self.config.prompt_template or self.config.completion_template
        if given and rows and all(row.prompt is None for row in rows):
            warn(
                "data.prompt_template and data.completion_template have no effect: "
                f"{rows[0].where} and the others hold no bare `prompt`",
                SettingWarning,
                stacklevel=3,
            )


def special_prefix(tokenizer: Any) -> list[int]:
    """Ids that a tokenizer puts before a text, such as BOS; what it puts after one is left out."""
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(plain) + 1):
        if plain and full[start : start + len(plain)] == plain:
            return full[:start]
    return []
