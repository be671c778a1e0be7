"""Whose sequences are learnt from, and answers written by the teacher."""

from amidkd.policies.answers import Answer, answer_examples, answers_fingerprint, read_answers, write_answers
from amidkd.policies.base import Policy, StepPlan
from amidkd.policies.dataset import DatasetPolicy
from amidkd.policies.make import PolicyRoom, make_policy, writes_while_training

__all__ = [
    "Answer",
    "DatasetPolicy",
    "Policy",
    "PolicyRoom",
    "StepPlan",
    "answer_examples",
    "answers_fingerprint",
    "make_policy",
    "read_answers",
    "write_answers",
    "writes_while_training",
]
