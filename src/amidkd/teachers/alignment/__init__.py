"""Teachers with another tokenizer: text as bytes, the spans that both cut alike, and the tokens that both have."""

from amidkd.teachers.alignment.pieces import Pieces
from amidkd.teachers.alignment.shared import shared_tokens
from amidkd.teachers.alignment.spans import Row, Span, align
from amidkd.teachers.alignment.teacher import TextTeacher, make_text_teacher

__all__ = ["Pieces", "Row", "Span", "TextTeacher", "align", "make_text_teacher", "shared_tokens"]
