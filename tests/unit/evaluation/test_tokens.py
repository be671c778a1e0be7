"""``tokens.jsonl`` against full logits in float64, token by token."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from amidkd.config import ObjectiveConfig, parse
from amidkd.evaluation import Scores, evaluate_run
from amidkd.evaluation.tokens import Assistant, assistant_of, farthest
from amidkd.record import RunFolder, read_json_lines, write_json_lines

SHARED = 17
ALPHA, LAM = -0.7, 0.3


@pytest.fixture
def tree(world, saved_world: Path, tmp_path: Path) -> dict:
    write_json_lines(
        tmp_path / "valid.jsonl", [{"prompt": row.prompt, "completion": row.completion} for row in world.rows]
    )
    return {
        "student": {"model": str(saved_world / "student"), "dtype": "auto"},
        "teacher": {"model": str(saved_world / "teacher"), "dtype": "auto"},
        "data": {
            "train": str(tmp_path / "valid.jsonl"),
            "validation": str(tmp_path / "valid.jsonl"),
            "prompt_template": "<s> {prompt} <sep>",
        },
        "objective": {"alpha": {"kind": "linear", "start": 1, "end": ALPHA}, "lam": LAM},
        "evaluation": {"sampling_seeds": [1], "max_new_tokens": 3, "token_rows": 5, "batch_size": 2},
        "output": str(tmp_path / "run"),
    }


def lines_of(tree: dict) -> list[dict]:
    folder = RunFolder(Path(tree["output"]))
    evaluate_run(parse(tree), folder)
    return read_json_lines(folder.tokens_file)


def log_probs(model, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, :, :SHARED].double().log_softmax(-1)


def test_every_token_is_what_the_models_say(tree: dict, world) -> None:
    lines = lines_of(tree)
    ids, rows = world.tokenizer.convert_tokens_to_ids, {row.prompt: row for row in world.rows}
    assert len(lines) == 5
    s = (1 - ALPHA) / 2
    for line in lines:
        row = rows[line["prompt"]]
        prompt, answer = ids(["<s>", *row.prompt.split(), "<sep>"]), [*row.completion.split(), "</s>"]
        assert (line["alpha"], line["lam"]) == (ALPHA, LAM)
        assert [token["text"].strip() for token in line["tokens"]] == answer
        before = slice(len(prompt) - 1, -1)
        p, q = (log_probs(model, prompt + ids(answer))[before].exp() for model in (world.teacher, world.student))
        r = (LAM * p**s + (1 - LAM) * q**s) ** (1 / s)
        r = r / r.sum(-1, keepdim=True)
        kl = (p * (p / q).log()).sum(-1)
        assert line["kl"] == pytest.approx(float(kl.mean()), rel=1e-3)
        for place, token in enumerate(line["tokens"]):
            label = ids(answer[place])
            assert token["kl"] == pytest.approx(float(kl[place]), rel=1e-3)
            assert token["p"] == pytest.approx(float(p[place, label]), rel=1e-3)
            assert token["q"] == pytest.approx(float(q[place, label]), rel=1e-3)
            for side, found in (("teacher", p), ("student", q), ("assistant", r)):
                top = found[place].topk(5)
                assert [value for _, value in token[side]] == pytest.approx(top.values.tolist(), rel=1e-3)
                named = world.tokenizer.convert_ids_to_tokens(top.indices.tolist())
                assert [text.strip() for text, _ in token[side]] == named


def test_rows_come_from_the_highest_divergence_down(tree: dict) -> None:
    every = lines_of({**tree, "evaluation": {**tree["evaluation"], "token_rows": 50}})
    found = [line["kl"] for line in every]
    assert len(found) == 11
    assert found == sorted(found, reverse=True)
    assert [line["row"] for line in lines_of(tree)] == [line["row"] for line in every[:5]]


def test_no_assistant_where_the_objective_has_none(tree: dict) -> None:
    plain = {**tree, "objective": {"between": "teacher||student"}}
    for line in lines_of(plain):
        assert (line["alpha"], line["lam"]) == (None, None)
        assert all("assistant" not in token for token in line["tokens"])


def test_what_a_later_evaluation_does_not_write_does_not_stay(tree: dict) -> None:
    lines_of(tree)
    assert lines_of({**tree, "teacher": None}) == []
    assert not RunFolder(Path(tree["output"])).tokens_file.exists()


def test_an_infinite_divergence_comes_first_and_is_null() -> None:
    kl = Scores(np.array([1.0, math.inf, 0.0, 6.0]), np.array([1.0, 2.0, 0.0, 3.0]))
    assert farthest(kl, 3) == [1, 3, 0]
    assert farthest(kl, 9) == [1, 3, 0]


def test_a_token_that_the_student_rules_out_is_written_as_json(
    tree: dict, world, saved_world, tmp_path, monkeypatch
) -> None:
    from amidkd.evaluation import tokens as module

    plain = module.head_logits

    def ruled_out(signal, rows, **settings):
        logits = plain(signal, rows, **settings)
        if signal.states.shape[1] == world.student.config.hidden_size:
            logits = logits.clone()
            logits[:, 6] = -math.inf
        return logits

    monkeypatch.setattr(module, "head_logits", ruled_out)
    lines = lines_of(tree)
    text = json.dumps(lines, allow_nan=False)
    assert all(token["kl"] is None for line in lines for token in line["tokens"])
    assert "NaN" not in text
    assert all(line["kl"] is None for line in lines)


def test_the_assistant_is_that_of_the_end_and_of_the_first_term_that_has_one() -> None:
    def of(**settings):
        return assistant_of(ObjectiveConfig.model_validate(settings))

    assert of(alpha=2, lam=0.4) == Assistant(2.0, 0.4)
    assert of(alpha={"kind": "piecewise", "points": [[0, 1], [1, -3]]}).alpha == -3.0
    assert of(lam={"kind": "adaptive", "end": 0.9}).lam == 0.9
    assert of(alpha={"kind": "constant", "value": 3}).alpha == 3.0
    terms = [{"weight": 1, "between": "teacher||student"}, {"weight": 1, "between": "student||assistant", "lam": 0.9}]
    assert of(terms=terms) == Assistant(-0.5, 0.9)
    assert of(terms=terms[:1]) is None
