"""Whose sequences are learnt from, and text written to prompts beforehand."""

from amidkd.policies.base import Policy, StepPlan
from amidkd.policies.dataset import DatasetPolicy
from amidkd.policies.make import PolicyRoom, make_policy, writes_while_training
from amidkd.policies.texts import Answer, TextSettings, answer_examples, read_answers, write_answers

__all__ = [
    "Answer",
    "DatasetPolicy",
    "Policy",
    "PolicyRoom",
    "StepPlan",
    "TextSettings",
    "answer_examples",
    "make_policy",
    "read_answers",
    "write_answers",
    "writes_while_training",
]
