"""Every metric of a model against a plain computation, row by row, without padding, chunks or cache."""

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from amidkd.config import EvaluationConfig
from amidkd.config.evaluation import AnswerMetric
from amidkd.data import Encoder, Row
from amidkd.errors import SettingError
from amidkd.evaluation import METRICS, estimates_of, evaluate_model, stack_results
from amidkd.evaluation.text import exact_match, rouge_l
from amidkd.teachers import LiveTeacher

SHARED = 17
LONGEST = 6
CONFIG = EvaluationConfig(batch_size=4, sampling_seeds=[1, 2, 3], metrics=list(get_args(AnswerMetric)))
FORCED = ("nll", "kl_teacher_student", "kl_student_teacher", "coverage", "top1_agreement", "acceptance")


def evaluate(world, model, rows=None, *, teacher=True, config=CONFIG, **others):
    beside = LiveTeacher(world.teacher, world.tokenizer, vocab_size=SHARED) if teacher is True else teacher
    return evaluate_model(
        model,
        tokenizer=world.tokenizer,
        rows=world.rows if rows is None else rows,
        encoder=world.encoder,
        config=config,
        max_new_tokens=LONGEST,
        teacher=beside,
        **others,
    )


@pytest.fixture(scope="module")
def result(world):
    return evaluate(world, world.student)


def log_probs(model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, :, :SHARED].log_softmax(-1)


def by_hand(world, prompt: list[int], answer: list[int]) -> dict[str, float]:
    """Sums over the answer's tokens, from the definitions."""
    tokens = prompt + answer
    before = slice(len(prompt) - 1, len(tokens) - 1)
    log_q, log_p = (log_probs(model, tokens)[before] for model in (world.student, world.teacher))
    p, q, picked = log_p.exp(), log_q.exp(), torch.tensor(answer).unsqueeze(-1)
    return {
        "tokens": float(len(answer)),
        "nll": -float(log_q.gather(-1, picked).sum()),
        "teacher_nll": -float(log_p.gather(-1, picked).sum()),
        "kl_teacher_student": float((p * (log_p - log_q)).sum()),
        "kl_student_teacher": float((q * (log_q - log_p)).sum()),
        "acceptance": float(torch.minimum(p, q).sum()),
        "coverage": float((p * (q > CONFIG.coverage_epsilon)).sum()),
        "top1_agreement": float((p.argmax(-1) == q.argmax(-1)).sum()),
    }


def texts_by_hand(world) -> list[dict[str, float]]:
    ids = world.tokenizer.convert_tokens_to_ids
    return [
        by_hand(world, ids(["<s>", *row.prompt.split(), "<sep>"]), ids([*row.completion.split(), "</s>"]))
        for row in world.rows
    ]


@pytest.mark.parametrize("name", FORCED)
def test_numbers_on_real_text_are_token_weighted_means_of_the_definitions(world, result, name: str) -> None:
    rows = texts_by_hand(world)
    sums, counts = np.array([row[name] for row in rows]), np.array([row["tokens"] for row in rows])
    found = result.estimates[name]
    assert found.value == pytest.approx(sums.sum() / counts.sum(), rel=1e-10)
    assert result.scores[name].sums == pytest.approx(sums, rel=1e-10)
    residuals = sums - found.value * counts
    error = math.sqrt(len(rows) / (len(rows) - 1) * (residuals**2).sum()) / counts.sum()
    assert found.error("prompts").value == pytest.approx(error, rel=1e-9)
    assert found.error("prompts").n == len(rows)


def test_perplexity_is_the_exponential_of_the_nll(result) -> None:
    assert result.estimates["perplexity"].value == pytest.approx(math.exp(result.estimates["nll"].value))


def test_calibration_is_the_gap_of_every_bin(world, result) -> None:
    ids = world.tokenizer.convert_tokens_to_ids
    gaps, tokens = np.zeros(CONFIG.calibration_bins), 0
    for row in world.rows:
        prompt, answer = ids(["<s>", *row.prompt.split(), "<sep>"]), ids([*row.completion.split(), "</s>"])
        q = log_probs(world.student, prompt + answer)[len(prompt) - 1 : -1].exp()
        for probabilities, label in zip(q, answer, strict=True):
            confidence = float(probabilities.max())
            place = math.ceil(confidence * len(gaps)) - 1
            gaps[place] += confidence - float(int(probabilities.argmax()) == label)
        tokens += len(answer)
    assert result.estimates["ece"].value == pytest.approx(np.abs(gaps).sum() / tokens, rel=1e-10)


def test_greedy_answers_are_the_likeliest_tokens(world, result) -> None:
    ids = world.tokenizer.convert_tokens_to_ids
    for row, answer in zip(world.rows, result.greedy.tokens, strict=True):
        tokens = ids(["<s>", *row.prompt.split(), "<sep>"])
        expected: list[int] = []
        while len(expected) < LONGEST and expected[-1:] != [2]:
            expected.append(int(log_probs(world.student, tokens + expected)[-1].argmax()))
        assert answer == expected


def test_text_metrics_score_the_answers_that_are_shown(world, result) -> None:
    rows = [
        replace(row, completion=text if row.index % 2 else row.completion, references=("red", text))
        for row, text in zip(world.rows, result.greedy.texts, strict=True)
    ]
    again = evaluate(world, world.student, rows)
    assert again.greedy == result.greedy
    assert again.estimates["exact_match_greedy"].value == 1.0
    draws = [
        [(text, (row.completion,)) for row, text in zip(world.rows, draw.texts, strict=True)]
        for draw in (result.greedy, *result.sampled)
    ]
    for name, score in (("exact_match", exact_match), ("rouge_l", rouge_l)):
        greedy, *sampled = (np.array([score(*pair) for pair in draw]) for draw in draws)
        assert result.estimates[f"{name}_greedy"].value == pytest.approx(greedy.mean())
        found = result.estimates[f"{name}_sampled"]
        assert found.value == pytest.approx(np.mean(sampled))
        over_seeds = np.std([draw.mean() for draw in sampled], ddof=1) / math.sqrt(3)
        assert found.error("sampling seeds").value == pytest.approx(over_seeds)
        over_prompts = np.std(np.mean(sampled, axis=0), ddof=1) / math.sqrt(len(world.rows))
        assert found.error("prompts").value == pytest.approx(over_prompts)
    lengths = [len([token for token in answer if token != 2]) for answer in result.greedy.tokens]
    assert result.estimates["length_greedy"].value == pytest.approx(np.mean(lengths))


def test_samples_are_scored_by_the_teacher_up_to_their_end(world, result) -> None:
    ids = world.tokenizer.convert_tokens_to_ids
    draws = [
        [
            by_hand(world, ids(["<s>", *row.prompt.split(), "<sep>"]), answer)
            for row, answer in zip(world.rows, draw.tokens, strict=True)
        ]
        for draw in result.sampled
    ]
    every = [row for draw in draws for row in draw]
    tokens = sum(row["tokens"] for row in every)
    for name, key in (
        ("teacher_nll_of_samples", "teacher_nll"),
        ("kl_student_teacher_on_samples", "kl_student_teacher"),
        ("acceptance_on_samples", "acceptance"),
    ):
        assert result.estimates[name].value == pytest.approx(sum(row[key] for row in every) / tokens, rel=1e-10)
    assert {error.over for error in result.estimates["teacher_nll_of_samples"].errors} == {"prompts", "sampling seeds"}
    assert any(answer[-1] == 2 for draw in result.sampled for answer in draw.tokens), "no sample ended"


def test_ids_beyond_the_shared_vocabulary_are_never_said(world, result) -> None:
    said = {token for draw in (result.greedy, *result.sampled) for answer in draw.tokens for token in answer}
    assert max(said) < SHARED


def test_every_metric_is_in_the_catalogue_and_the_catalogue_is_measured(result) -> None:
    assert set(result.estimates) <= set(METRICS)
    elsewhere = ("numeric_match", "text_", "pass_at", "judge", "acceptance_measured", "acceptance_predicted")
    assert {name for name in METRICS if not name.startswith(elsewhere)} == set(result.estimates)
    assert result.missing == ("numeric match: no reference has a number",)


def test_batches_and_chunks_change_nothing(world, result) -> None:
    other = evaluate(world, world.student, config=CONFIG.model_copy(update={"batch_size": 11}), memory_mb=1e-9)
    assert other.greedy == result.greedy
    assert other.sampled == result.sampled
    for name, found in result.estimates.items():
        assert other.estimates[name].value == pytest.approx(found.value, rel=1e-10), name


def test_the_teacher_as_its_own_student_is_no_distance_away(world) -> None:
    found = evaluate(world, world.teacher).estimates
    for name in ("kl_teacher_student", "kl_student_teacher", "kl_student_teacher_on_samples"):
        assert found[name].value == 0.0
        assert found[name].error("prompts").value == 0.0
    for name in ("acceptance", "top1_agreement", "acceptance_on_samples"):
        assert found[name].value == 1.0


def test_evaluation_leaves_a_model_as_it_was(world) -> None:
    world.student.train()
    before = torch.get_rng_state()
    evaluate(world, world.student)
    assert world.student.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in world.student.parameters())
    world.student.eval()


def test_prompts_alone_allow_what_needs_no_answer(world) -> None:
    found = evaluate(world, world.student, [row.unlabelled() for row in world.rows])
    expected = {"length_greedy", "length_sampled", "teacher_nll_of_samples"}
    expected |= {"distinct_1_sampled", "distinct_2_sampled", "self_bleu_sampled"}
    assert set(found.estimates) == expected | {"kl_student_teacher_on_samples", "acceptance_on_samples"}
    assert any("NLL" in line and "`completion`" in line for line in found.missing)
    assert any("exact match" in line and "ROUGE-L" in line for line in found.missing)


def test_plain_text_allows_likelihoods(world) -> None:
    rows = [Row(n, f"line {n}", text=text) for n, text in enumerate(["red cat sits here", "dog runs", "bird"])]
    plain = Encoder(world.tokenizer, world.encoder.config.model_copy(update={"prompt_template": None}))
    found = evaluate(replace(world, encoder=plain), world.student, rows)
    assert set(found.estimates) == {*FORCED, "perplexity", "ece"}
    assert found.greedy is None
    assert any("without prompts" in line for line in found.missing)


def test_some_rows_without_a_completion_count_for_what_they_allow(world) -> None:
    rows = [row if row.index < 6 else row.unlabelled() for row in world.rows]
    some, first = evaluate(world, world.student, rows), evaluate(world, world.student, world.rows[:6])
    for name in FORCED:
        found, expected = some.estimates[name], first.estimates[name]
        assert found.value == pytest.approx(expected.value, rel=1e-12)
        assert found.error("prompts").value == pytest.approx(expected.error("prompts").value, rel=1e-9)
        assert found.error("prompts").n == 6
    assert some.estimates["exact_match_greedy"].error("prompts").n == 6
    assert some.estimates["length_greedy"].error("prompts").n == len(world.rows)


def test_rows_of_several_files_may_share_their_numbers(world, result) -> None:
    again = evaluate(world, world.student, [replace(row, index=0) for row in world.rows])
    assert again.estimates == result.estimates


def test_without_a_teacher_its_metrics_are_missing_and_said(world) -> None:
    found = evaluate(world, world.student, teacher=None)
    assert "nll" in found.estimates
    assert "kl_teacher_student" not in found.estimates
    assert any("distance from a teacher: there is none" in line for line in found.missing)


def test_rows_over_the_limit_that_are_dropped_leave_nothing(world) -> None:
    short = world.encoder.config.model_copy(update={"max_prompt_length": 2, "long_prompts": "drop"})
    strict = replace(world, encoder=Encoder(world.tokenizer, short))
    with pytest.raises(SettingError, match="no row is left to evaluate on"):
        evaluate(strict, world.student)


def test_training_seeds_are_stacked_row_by_row(world, result) -> None:
    other = evaluate(world, world.teacher)
    found = estimates_of(stack_results([result, other]))
    for name in ("nll", "exact_match_sampled"):
        runs = [result.estimates[name].value, other.estimates[name].value]
        assert found[name].value == pytest.approx(np.mean(runs))
        assert found[name].error("training seeds").value == pytest.approx(np.std(runs, ddof=1) / math.sqrt(2))
    assert found["perplexity"].value == pytest.approx(math.exp(found["nll"].value))
    with pytest.raises(ValueError, match="nothing to stack"):
        stack_results([])
