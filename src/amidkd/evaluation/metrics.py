"""The metrics of an evaluation: what each is called, what it says, and which way is better."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """One line of the table of metrics.

    Args:
        name: Key in records.
        label: Heading of a column.
        unit: ``"share"`` (0 to 1, shown in per cent), ``"nats"`` (a token), ``"tokens"`` or ``""``.
        better: Which direction is better, or None where neither is.
        meaning: One sentence.
    """

    name: str
    label: str
    unit: Literal["share", "nats", "tokens", ""]
    better: Literal["higher", "lower"] | None
    meaning: str


_ALL = (
    Metric(
        "exact_match_greedy", "Exact match, greedy", "share", "higher",
        "Answers, each token the likeliest one, that equal a reference up to white space.",
    ),
    Metric(
        "exact_match_sampled", "Exact match, sampled", "share", "higher",
        "The same for answers drawn from the model's own distribution.",
    ),
    Metric(
        "rouge_l_greedy", "ROUGE-L, greedy", "share", "higher",
        "Longest common subsequence of stemmed words with the nearest reference, as F-measure.",
    ),
    Metric("rouge_l_sampled", "ROUGE-L, sampled", "share", "higher", "The same for sampled answers."),
    Metric("length_greedy", "Length, greedy", "tokens", None, "Tokens of a greedy answer, without its end token."),
    Metric("length_sampled", "Length, sampled", "tokens", None, "The same for sampled answers."),
    Metric(
        "nll", "NLL of real text", "nats", "lower",
        "Negative log-likelihood a token of the held-out answers: how well the model covers real text.",
    ),
    Metric("perplexity", "Perplexity", "", "lower", "exp of the NLL of real text."),
    Metric(
        "kl_teacher_student", "KL(teacher‖student)", "nats", "lower",
        "Over the held-out text; large where the student misses what the teacher finds likely.",
    ),
    Metric(
        "kl_student_teacher", "KL(student‖teacher)", "nats", "lower",
        "Over the held-out text; large where the student says what the teacher finds unlikely.",
    ),
    Metric(
        "top1_agreement", "Top-1 agreement", "share", "higher",
        "Positions of the held-out text where both find the same token likeliest.",
    ),
    Metric(
        "acceptance", "Acceptance as a draft", "share", "higher",
        "1 − total variation on the held-out text: how often speculative decoding keeps the student's token.",
    ),
    Metric(
        "teacher_nll_of_samples", "Teacher's NLL of samples", "nats", "lower",
        "The teacher's negative log-likelihood a token of what the model samples: precision, beside NLL as coverage.",
    ),
    Metric(
        "kl_student_teacher_on_samples", "KL(student‖teacher) on samples", "nats", "lower",
        "The same divergence along the student's own samples, where it has to work once trained.",
    ),
    Metric(
        "acceptance_on_samples", "Acceptance on samples", "share", "higher",
        "1 − total variation along the student's own samples.",
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
