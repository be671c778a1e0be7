"""The metrics of an evaluation: what each is called, what it says, and which way is better."""

from dataclasses import dataclass
from typing import Literal

from amidkd.config.evaluation import PASS_AT

__all__ = ["GROUPS", "METRICS", "Group", "Metric", "Unit"]

Unit = Literal["share", "nats", "tokens", "score", ""]
Group = Literal["answers", "diversity", "real text", "distance", "samples", "calibration", "use"]


@dataclass(frozen=True)
class Metric:
    """One line of the table of metrics.

    Args:
        name: Key in records.
        label: Heading of a column.
        unit: ``"share"`` (0 to 1, shown in per cent), ``"nats"`` (a token), ``"tokens"``, ``"score"`` (0 to 100) or
            ``""``.
        better: Which direction is better, or None where neither is.
        group: Under which heading it stands: what the answers are worth, how varied they are, likelihood of real text,
            distance from the teacher on it, the student's own samples, calibration, or what it is good for beside.
        meaning: One sentence.
    """

    name: str
    label: str
    unit: Unit
    better: Literal["higher", "lower"] | None
    group: Group
    meaning: str


_ALL = (
    Metric(
        "exact_match_greedy", "Exact match, greedy", "share", "higher", "answers",
        "Answers, each token the likeliest one, that equal a reference up to white space.",
    ),
    Metric(
        "exact_match_sampled", "Exact match, sampled", "share", "higher", "answers",
        "The same for answers drawn from the model's own distribution.",
    ),
    Metric(
        "numeric_match_greedy", "Numeric match, greedy", "share", "higher", "answers",
        "Answers whose number (after ####, else the last one) equals that of a reference.",
    ),
    Metric(
        "numeric_match_sampled", "Numeric match, sampled", "share", "higher", "answers",
        "The same for sampled answers.",
    ),
    Metric(
        "rouge_l_greedy", "ROUGE-L, greedy", "share", "higher", "answers",
        "Longest common subsequence of stemmed words with the nearest reference, as F-measure.",
    ),
    Metric("rouge_l_sampled", "ROUGE-L, sampled", "share", "higher", "answers", "The same for sampled answers."),
    Metric(
        "phoneme_error_rate_greedy", "Phoneme error rate, greedy", "share", "lower", "answers",
        "Edits to the nearest reference, in symbols parted by white space, over the symbols of those references.",
    ),
    Metric(
        "phoneme_error_rate_sampled", "Phoneme error rate, sampled", "share", "lower", "answers",
        "The same for sampled answers.",
    ),
    Metric(
        "character_error_rate_greedy", "Character error rate, greedy", "share", "lower", "answers",
        "Edits to the nearest reference, in characters, over the characters of those references.",
    ),
    Metric(
        "character_error_rate_sampled", "Character error rate, sampled", "share", "lower", "answers",
        "The same for sampled answers.",
    ),
    Metric(
        "bleu_greedy", "BLEU, greedy", "score", "higher", "answers",
        "Precision of 1- to 4-grams against the references, over all prompts together, less where answers are short.",
    ),
    Metric("bleu_sampled", "BLEU, sampled", "score", "higher", "answers", "The same for sampled answers."),
    Metric(
        "chrf_greedy", "chrF, greedy", "score", "higher", "answers",
        "F-score of character 1- to 6-grams against the nearest reference, over all prompts together.",
    ),
    Metric("chrf_sampled", "chrF, sampled", "score", "higher", "answers", "The same for sampled answers."),
    *(
        Metric(
            f"pass_at_{k}", f"pass@{k}", "share", "higher", "answers",
            f"Chance that one of {k} sampled answer{'s' if k > 1 else ''}, run as code, passes the row's tests.",
        )
        for k in PASS_AT
    ),
    Metric(
        "judge_win_rate", "Wins before the judge", "share", "higher", "answers",
        "Answers that the judge prefers to the other side's in both orders, ties as half.",
    ),
    Metric(
        "length_greedy", "Length, greedy", "tokens", None, "answers",
        "Tokens of a greedy answer, without its end token.",
    ),
    Metric("length_sampled", "Length, sampled", "tokens", None, "answers", "The same for sampled answers."),
    Metric(
        "distinct_1_sampled", "Distinct-1", "share", "higher", "diversity",
        "Different words among all words of the sampled answers to a prompt.",
    ),
    Metric(
        "distinct_2_sampled", "Distinct-2", "share", "higher", "diversity",
        "Different pairs of neighbouring words among all pairs of the sampled answers to a prompt.",
    ),
    Metric(
        "self_bleu_sampled", "Self-BLEU", "score", "lower", "diversity",
        "BLEU of each sampled answer against the other seeds' answers to the same prompt: high where all are alike.",
    ),
    Metric(
        "nll", "NLL of real text", "nats", "lower", "real text",
        "Negative log-likelihood a token of the held-out answers: how well the model covers real text.",
    ),
    Metric("perplexity", "Perplexity", "", "lower", "real text", "exp of the NLL of real text."),
    Metric(
        "text_nll", "NLL of plain text", "nats", "lower", "real text",
        "Negative log-likelihood a token of the texts of evaluation.text.",
    ),
    Metric("text_perplexity", "Perplexity of plain text", "", "lower", "real text", "exp of the NLL of plain text."),
    Metric(
        "kl_teacher_student", "KL(teacher‖student)", "nats", "lower", "distance",
        "Over the held-out text; large where the student misses what the teacher finds likely.",
    ),
    Metric(
        "kl_student_teacher", "KL(student‖teacher)", "nats", "lower", "distance",
        "Over the held-out text; large where the student says what the teacher finds unlikely.",
    ),
    Metric(
        "coverage", "Coverage", "share", "higher", "distance",
        "Over the held-out text, the teacher's mass on tokens that the student gives more than coverage_epsilon.",
    ),
    Metric(
        "top1_agreement", "Top-1 agreement", "share", "higher", "distance",
        "Positions of the held-out text where both find the same token likeliest.",
    ),
    Metric(
        "acceptance", "Acceptance as a draft", "share", "higher", "distance",
        "1 − total variation on the held-out text: how often speculative decoding keeps the student's token.",
    ),
    Metric(
        "ece", "Calibration error", "share", "lower", "calibration",
        "How far the probability of the likeliest token is from how often it is right, over bins of confidence (ECE).",
    ),
    Metric(
        "teacher_nll_of_samples", "Teacher's NLL of samples", "nats", "lower", "samples",
        "The teacher's negative log-likelihood a token of what the model samples: precision, beside NLL as coverage.",
    ),
    Metric(
        "kl_student_teacher_on_samples", "KL(student‖teacher) on samples", "nats", "lower", "samples",
        "The same divergence along the student's own samples, where it has to work once trained.",
    ),
    Metric(
        "acceptance_on_samples", "Acceptance on samples", "share", "higher", "samples",
        "1 − total variation along the student's own samples.",
    ),
    Metric(
        "acceptance_measured", "Acceptance, measured", "share", "higher", "use",
        "Drafted tokens that the teacher kept in assisted generation, of those that it came to judge.",
    ),
    Metric(
        "acceptance_predicted", "Acceptance, predicted", "share", "higher", "use",
        "1 − total variation at the same positions: what the measured one is an estimate of.",
    ),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric of one model on held-out rows, the teacher beside it, in the order of tables."""

GROUPS: dict[Group, str] = {
    "answers": "Answers",
    "diversity": "Diversity",
    "real text": "Real text",
    "distance": "Beside the teacher",
    "calibration": "Calibration",
    "samples": "Own samples",
    "use": "In use",
}
"""Headings of groups of metrics."""
