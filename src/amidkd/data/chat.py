"""Conversations as tokens: the tokenizer's chat template, with every assistant turn supervised.

A conversation is rendered once and tokenized once, so its tokens are those that the model sees at inference. What is
supervised is found in the rendered text: from where the template, asked for a reply, hands over to the assistant, up
to and with the token that ends the turn.
"""

import re
from bisect import bisect_left
from typing import Any

from amidkd.errors import SettingError

__all__ = ["Chat"]

Message = dict[str, Any]


class Chat:
    """A tokenizer's chat template.

    Args:
        tokenizer: A tokenizer of ``transformers``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def prompt(self, messages: list[Message], where: str) -> list[int]:
        """Tokens up to where the assistant begins to reply.

        Args:
            messages: The conversation before the reply.
            where: File and line, for messages.

        Raises:
            SettingError: No chat template; a conversation that it refuses.
        """
        return self._ids(self._render(messages, where, reply=True))

    def conversation(self, messages: list[Message], where: str) -> tuple[list[int], list[bool], bool]:
        """Tokens of a conversation, which of them the assistant says, and whether the last turn is ended.

        Args:
            messages: The whole conversation.
            where: File and line, for messages.

        Returns:
            Token ids, True where a token is of an assistant turn or ends one, and False where the last assistant turn
            has no token that ends it (EOS is to be appended).

        Raises:
            SettingError: No chat template; a conversation that it refuses; turns that cannot be told apart.
        """
        if self._marks_turns():
            ids, spoken = self._marked(messages, where)
        else:
            ids, spoken = self._found(messages, where)
        if not any(spoken) or messages[-1]["role"] != "assistant":
            return ids, spoken, True
        last = len(spoken) - 1 - spoken[::-1].index(True)
        if ids[last] in self._special:
            return ids, spoken, True
        if last + 1 < len(ids) and ids[last + 1] in self._special:
            # The template's own marks leave out what ends a turn; without it the student would never stop.
            end = ids[last + 1]
            pairs = zip(ids[1:], spoken, strict=False)
            ends = [token == end and before for token, before in pairs]
            return ids, [spoken[0], *(s or e for s, e in zip(spoken[1:], ends, strict=True))], True
        return ids[: last + 1], spoken[: last + 1], False

    def _marks_turns(self) -> bool:
        template = self._template()
        return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None

    def _template(self) -> str:
        template = getattr(self._tokenizer, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if not template:
            raise SettingError(
                "the rows hold `messages`, but the tokenizer has no chat template; use the tokenizer of a chat model, "
                "put a chat_template.jinja into the model's folder, or give `prompt` and `completion` instead"
            )
        return str(template)

    def _marked(self, messages: list[Message], where: str) -> tuple[list[int], list[bool]]:
        """By the template's own ``{% generation %}`` marks."""
        from jinja2 import TemplateError

        try:
            found = self._tokenizer.apply_chat_template(
                messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise SettingError(f"{where}: the chat template refuses the conversation: {_line(error)}") from None
        return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]

    def _found(self, messages: list[Message], where: str) -> tuple[list[int], list[bool]]:
        """By where each turn begins and ends in the rendered text."""
        text = self._render(messages, where)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        spoken = [False] * len(ids)
        starts = [start for start, _ in offsets]
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            begin, end = self._span(messages, turn, text, where)
            first, stop = bisect_left(starts, begin), bisect_left(starts, end)
            if first == stop:
                raise SettingError(f"{where}: message {turn + 1}: the chat template shows nothing of this turn")
            # What follows the token that ends the turn (a line break) belongs to the next one.
            ends = [place for place in range(first, stop) if ids[place] in self._special]
            stop = ends[-1] + 1 if ends else stop
            spoken[first:stop] = [True] * (stop - first)
        return ids, spoken

    def _span(self, messages: list[Message], turn: int, text: str, where: str) -> tuple[int, int]:
        """Where in the text the assistant's turn begins and ends."""
        before = self._render(messages[:turn], where, reply=True)
        through = self._render(messages[: turn + 1], where)
        if text.startswith(before):
            if text.startswith(through) and len(through) > len(before):
                return len(before), len(through)
            # Some templates show the last turn otherwise than earlier ones (an empty thought before it).
            content = message_text(messages[turn])
            end = len(before) + len(content)
            after = self._ids(text[end:])[:1]
            if content and text.startswith(content, len(before)) and after and after[0] in self._special:
                return len(before), end + len(self._tokenizer.convert_ids_to_tokens(after[0]))
        raise SettingError(
            f"{where}: message {turn + 1}: the chat template shows this turn otherwise inside the conversation than "
            "when it is said, so what to learn cannot be told; mark it by {% generation %} in the template, or split "
            "the conversation so that each row ends in the turn to learn"
        )

    def _render(self, messages: list[Message], where: str, *, reply: bool = False) -> str:
        from jinja2 import TemplateError

        self._template()
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=reply))
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise SettingError(f"{where}: the chat template refuses the conversation: {_line(error)}") from None

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def message_text(message: Message) -> str:
    """What a turn says, as most templates show it: without white space around it."""
    return str(message.get("content") or "").strip()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
