"""A teacher on another machine: `amidkd serve`, or a vLLM server."""

from amidkd.teachers.served.client import ServedTeacher
from amidkd.teachers.served.meeting import connect, fetch_tokenizer

__all__ = ["ServedTeacher", "connect", "fetch_tokenizer"]
