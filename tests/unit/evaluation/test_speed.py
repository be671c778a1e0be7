"""Speed and sizes of models."""

import pytest

from amidkd.evaluation.speed import measure_speed, sizes
from tiny_models import VOCABULARY, tiny_model


def test_sizes_are_those_of_the_weights() -> None:
    untied, tied = tiny_model("llama_untied"), tiny_model("llama_tied")
    table = VOCABULARY * 32
    count = sum(parameter.numel() for parameter in untied.parameters())
    assert sizes(untied) == {
        "parameters": count,
        "weights_bytes": 4 * count,
        "work_per_token": 2 * (count - table),
    }
    # A tied head is one tensor that is both looked up and multiplied.
    assert sizes(tied)["parameters"] == count - table
    assert sizes(tied)["work_per_token"] == 2 * (count - table)
    assert sizes(untied.bfloat16())["weights_bytes"] == 2 * count


def test_all_answers_have_one_length_and_rates_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    from amidkd.evaluation import speed

    made: list[int] = []
    generate = speed.generate

    def watched(*args, **settings):
        answers = generate(*args, **settings)
        made.extend(map(len, answers))
        return answers

    monkeypatch.setattr(speed, "generate", watched)
    models = {"student": tiny_model("gpt2"), "teacher": tiny_model("llama_tied")}
    found = measure_speed(models, [[1, 5, 6]] * 20, pad_id=0, vocab_size=40, max_new_tokens=8)
    assert made == [8] * (16 * 2 * 4)
    assert (found["batch_size"], found["new_tokens"], found["rounds"]) == (16, 8, 3)
    rates = [found[side]["tokens_per_second"] for side in ("student", "teacher")]
    assert min(rates) > 0
    assert found["speedup"] == rates[0] / rates[1]
    alone = measure_speed({"student": models["student"]}, [[1, 5]], pad_id=0, vocab_size=40, max_new_tokens=64)
    assert "speedup" not in alone
    assert alone["new_tokens"] == 32
