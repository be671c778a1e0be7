"""What a run cites follows from its settings."""

import re

import pytest

from amidkd.citations import CITATIONS, citations_of
from amidkd.config import parse

RUN = {"student": "s", "teacher": "t", "data": {"train": "d"}, "output": "o"}
COMMON = {"hinton2015distilling", "wolf2020transformers", "lin2004rouge", "leviathan2023speculative"}
GKD = [
    {"between": "teacher||assistant", "alpha": -1, "lam": 0.3, "weight": 0.3},
    {"between": "student||assistant", "alpha": -1, "lam": 0.3, "weight": 0.7},
]
TAID = {"between": "assistant||student", "alpha": 1, "detach_assistant": True, "lam": {"kind": "adaptive"}}
ABKD = {"name": "alpha_beta", "a": 0.2, "b": 0.7}
AMID = {"shin2026amid", "amari2007integration"}


def keys(**sections) -> set[str]:
    return {citation.key for citation in citations_of(parse({**RUN, **sections}))}


@pytest.mark.parametrize(
    ("objective", "methods"),
    [
        ({"between": "teacher||student"}, set()),
        ({"between": "student||teacher"}, {"gu2024minillm"}),
        ({"between": "teacher||student", "divergence": "reverse_kl"}, {"gu2024minillm"}),
        ({"between": "teacher||assistant", "alpha": -1}, {"ko2024distillm"}),
        ({"between": "student||assistant", "alpha": -1, "lam": 0.9}, {"ko2024distillm"}),
        ({"between": "assistant||teacher", "divergence": "reverse_kl", "alpha": -1}, {"ko2024distillm"}),
        ({"terms": GKD}, {"agarwal2024gkd"}),
        (TAID, {"shing2025taid"}),
        ({"between": "teacher||student", "divergence": ABKD}, {"wang2025abkd"}),
        ({"between": "teacher||assistant", "alpha": -3}, AMID),
        ({"between": "teacher||assistant", "alpha": -3, "divergence": ABKD}, AMID | {"wang2025abkd"}),
        ({"between": "teacher||assistant", "alpha": {"kind": "linear", "start": 1, "end": -3}}, AMID),
        ({"between": "assistant||student", "alpha": 1}, AMID),
    ],
)
def test_objective_decides_the_methods(objective: dict, methods: set[str]) -> None:
    assert keys(objective=objective) == COMMON | methods


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ("on_policy", "agarwal2024gkd"),
        ("mixed", "agarwal2024gkd"),
        ("adaptive", "ko2024distillm"),
        ("contrastive", "ko2025distillm2"),
        ("sequence_level", "kim2016sequence"),
        ({"kind": "sequence_level", "writer": "student"}, "lin2020imitkd"),
    ],
)
def test_policy_decides_whose_text(policy, method) -> None:
    assert method in keys(policy=policy, objective={"between": "teacher||student"})


def test_the_students_text_has_an_objective_of_its_own() -> None:
    # Both sides of DistiLLM-2 are skewed KLs.
    assert keys(policy="contrastive") == COMMON | {"ko2024distillm", "ko2025distillm2"}


def test_other_settings_add_theirs() -> None:
    plain = {"between": "teacher||student"}
    assert "gu2024minillm" in keys(objective=plain, data={"train": "d", "corpus": {"source": "c"}})
    assert "gu2024minillm" in keys(objective=plain, data={"train": "d", "prompt_template": "instruction"})
    assert "kim2016sequence" in keys(objective=plain, data={"train": "d", "label_fraction": 0.05})
    assert "hu2022lora" in keys(objective=plain, student={"kind": "pretrained", "model": "s", "lora": {}})


def test_fine_tuning_cites_no_distillation() -> None:
    assert keys(teacher=None) == {"wolf2020transformers", "lin2004rouge"}


@pytest.mark.parametrize("citation", CITATIONS.values(), ids=CITATIONS.keys())
def test_entries_are_bibtex(citation) -> None:
    text = citation.bibtex
    assert re.match(rf"@[a-z]+\{{{citation.key},\n", text)
    assert text.endswith("}")
    assert text.count("{") == text.count("}")
    for field in ("author", "title", "year"):
        assert re.search(rf"^  {field} = \{{.+\}},$", text, re.MULTILINE)
    assert citation.fields["year"] in citation.short
    assert not set("{}$\\") & set(citation.short)


@pytest.mark.parametrize(
    ("teacher", "works"),
    [
        ({"model": "t", "alignment": "text"}, {"boizard2025towards"}),
        ({"kind": "ensemble", "teachers": [{"model": "t"}] * 2}, set()),
        ({"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "drop": 0.3}, {"son2021densely"}),
        ({"kind": "ensemble", "teachers": [{"model": "t"}] * 2, "weights": "search"}, {"ganta2022weighted"}),
    ],
)
def test_kinds_of_teachers(teacher, works) -> None:
    of_teachers = {"boizard2025towards", "son2021densely", "ganta2022weighted", "mirzadeh2020improved"}
    assert keys(teacher=teacher) & of_teachers == works


def test_a_chain_of_assistants() -> None:
    stages = [{"name": "a"}, {"teacher": {"kind": "stage", "stage": "a"}}]
    assert "mirzadeh2020improved" in keys(stages=stages)
