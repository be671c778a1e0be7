"""Text around bare prompts and completions."""

from amidkd.errors import SettingError

__all__ = ["INSTRUCTION", "fill", "find_template"]

#: The prompt of the MiniLLM, DistiLLM and AMiD papers (from Stanford Alpaca), for an instruction without an input.
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)
_READY = {"instruction": INSTRUCTION}
# Files of those papers come wrapped already, with or without an input.
_WRAPPED = "Below is an instruction that describes a task"


def find_template(template: str | None, placeholder: str, setting: str) -> str | None:
    """The template itself, or the ready one of that name.

    Args:
        template: Text with ``{placeholder}``, the name of a ready template, or None.
        placeholder: ``prompt`` or ``completion``.
        setting: Name of the setting, for messages.

    Raises:
        SettingError: It lacks its placeholder.
    """
    if template is None:
        return None
    ready = _READY.get(template, template)
    if f"{{{placeholder}}}" not in ready:
        raise SettingError(
            f"{setting} = {template!r} must hold {{{placeholder}}}, where the row's {placeholder} goes"
            + (f"; or be the name of a ready one: {', '.join(_READY)}" if placeholder == "prompt" else "")
        )
    return ready


def fill(template: str | None, placeholder: str, text: str) -> str:
    """Put a text in place of the placeholder.

    Braces elsewhere, in the template or the text, stay as they are. A prompt that already stands in the papers'
    instruction prompt is not wrapped in it again.

    Example:
        >>> fill("{x} {prompt}!", "prompt", "{prompt} {y}")
        '{x} {prompt} {y}!'
    """
    if template is None or (template == INSTRUCTION and text.startswith(_WRAPPED)):
        return text
    return template.replace(f"{{{placeholder}}}", text)
