"""Whose sequences are learnt from, and answers written by the teacher."""

from amidkd.policies.answers import Answer, answer_examples, answers_fingerprint, read_answers, write_answers
from amidkd.policies.dataset import DatasetPolicy, Policy, make_policy

__all__ = [
    "Answer",
    "DatasetPolicy",
    "Policy",
    "answer_examples",
    "answers_fingerprint",
    "make_policy",
    "read_answers",
    "write_answers",
]
