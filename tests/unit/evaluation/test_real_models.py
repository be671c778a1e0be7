"""The evaluation of real models on real words agrees with what is known of them."""

from pathlib import Path

import pytest

from amidkd.config import parse
from amidkd.evaluation import Estimate, evaluate_run
from amidkd.record import RunFolder, read_json_lines


def test_pronunciation_student_beside_its_teacher(shared: Path, tmp_path: Path) -> None:
    rows = shared / "data" / "g2p_cmudict_valid.jsonl"
    config = parse(
        {
            "student": str(shared / "models" / "g2p-st64_ce"),
            "teacher": str(shared / "models" / "g2p-teacher128"),
            "data": {"train": str(rows), "validation": str(rows), "prompt_template": "<s>{prompt}<sep>"},
            "evaluation": {
                "max_rows": 200,
                "sampling_seeds": [10, 20],
                "max_new_tokens": 32,
                "batch_size": 200,
                "metrics": ["exact_match", "phoneme_error_rate", "bleu", "distinct_n", "self_bleu"],
            },
            "output": str(tmp_path / "run"),
        }
    )
    entry = evaluate_run(config, RunFolder(tmp_path / "run"))

    def value(side: str, name: str) -> float:
        return Estimate.from_json(entry[side]["metrics"][name]).value

    # On 5,067 other words: 50.2 % and 57.6 % right, NLL 0.334 and 0.263 (data/README.md). Here 200 words, ± 3.5 %.
    assert value("student", "exact_match_greedy") == pytest.approx(0.45, abs=0.12)
    assert value("teacher", "exact_match_greedy") == pytest.approx(0.52, abs=0.12)
    assert value("student", "nll") == pytest.approx(0.37, abs=0.1)
    assert value("teacher", "nll") == pytest.approx(0.29, abs=0.08)
    assert 0.86 < value("student", "acceptance") < 0.94
    assert 0.86 < value("student", "top1_agreement") < 0.94
    assert value("student", "exact_match_sampled") < value("student", "exact_match_greedy")
    # A student trained by cross-entropy covers: its samples surprise the teacher more than the teacher's own do.
    assert value("student", "teacher_nll_of_samples") > 1.5 * value("teacher", "teacher_nll_of_samples")
    # On the other words: phoneme error rates of 15.4 % and 12.1 %.
    assert value("student", "phoneme_error_rate_greedy") == pytest.approx(0.17, abs=0.04)
    assert value("teacher", "phoneme_error_rate_greedy") == pytest.approx(0.13, abs=0.04)
    assert value("student", "phoneme_error_rate_sampled") > value("student", "phoneme_error_rate_greedy")
    # It says more different things than its teacher does, and less of it is right.
    assert value("student", "distinct_2_sampled") > value("teacher", "distinct_2_sampled")
    assert value("student", "self_bleu_sampled") < value("teacher", "self_bleu_sampled")
    assert value("student", "bleu_sampled") < value("teacher", "bleu_sampled")
    assert 0.98 < value("student", "coverage") < value("teacher", "coverage") <= 1
    assert value("student", "ece") < 0.05
    lines = read_json_lines(RunFolder(tmp_path / "run").tokens_file)
    assert len(lines) == 20
    assert lines[0]["kl"] > 4 * value("student", "kl_teacher_student")
