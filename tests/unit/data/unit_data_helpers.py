"""What the tests of this folder read examples with."""


def supervised(tokenizer, example) -> str:
    """The supervised tokens as text, specials included."""
    return tokenizer.decode([t for t, mark in zip(example.tokens, example.targets, strict=True) if mark])
