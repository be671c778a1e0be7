"""What a sweep tries: combinations, values, and settings that cannot be run, found before the start."""

import itertools
from typing import Any

import pytest
import yaml

from amidkd.config import Choices, Range, SweepConfig, dump_yaml, parse
from amidkd.errors import SettingError
from amidkd.sweep.space import applies, check_space, combinations, decoded, encoded, in_order, is_finite, values_of
from amidkd.sweep.trial import trial_tree


def space_of(**entries: Any) -> dict[str, Range | Choices]:
    tree = {key.replace("__", "."): entry for key, entry in entries.items()}
    return {
        key: Range.model_validate(entry) if "low" in entry else Choices.model_validate(entry)
        for key, entry in tree.items()
    }


def test_a_grid_has_each_distinct_combination_once_whatever_the_conditions() -> None:
    space = space_of(
        alpha={"choices": [-1, 0, 1], "when": {"between": ["ta", "sa"]}},
        between={"choices": ["ta", "sa", "ts"]},
        lam={"choices": [0.1, 0.5], "when": {"alpha": [0, 1]}},
    )
    found = list(combinations(space))
    by_hand = [{"between": "ts"}]
    for between, alpha in itertools.product(["ta", "sa"], [-1, 0, 1]):
        rest = [{}] if alpha == -1 else [{"lam": 0.1}, {"lam": 0.5}]
        by_hand += [{"between": between, "alpha": alpha, **each} for each in rest]
    assert len(found) == len(by_hand) == 11
    assert sorted(map(sorted_items, found)) == sorted(map(sorted_items, by_hand))


def sorted_items(params: dict[str, Any]) -> str:
    return repr(sorted(params.items()))


def test_the_values_of_a_stepped_range_are_the_ones_that_a_reader_expects() -> None:
    assert values_of(Range(low=0.1, high=0.5, step=0.1)) == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert values_of(Range(low=1, high=8, step=3)) == [1, 4, 7]
    assert values_of(Range(low=-5, high=1, step=0.5))[-1] == 1.0
    assert not is_finite({"a": Range(low=0.0, high=1.0)})


def test_a_condition_on_a_section_can_name_its_kind() -> None:
    entry = Choices(choices=[1], when={"divergence": "alpha_beta"})
    assert applies(entry, {"divergence": {"name": "alpha_beta", "a": 0.2, "b": 0.7}})
    assert not applies(entry, {"divergence": "kl"})
    assert not applies(entry, {})


def test_conditions_in_a_circle_are_refused() -> None:
    space = space_of(
        a={"choices": [1, 2], "when": {"b": [1]}},
        b={"choices": [1, 2], "when": {"a": [1]}},
    )
    with pytest.raises(SettingError, match="go in a circle"):
        in_order(space)


@pytest.mark.parametrize(
    ("entry", "value", "possible"),
    [
        ({"low": -1.0, "high": 1.0}, 0.5, False),
        ({"low": -1.0, "high": 1.0, "step": 0.1}, 0.3, True),
        ({"low": -1.0, "high": 1.0, "step": 0.1}, 0.35, False),
        ({"low": 1, "high": 4}, 3, True),
        ({"low": 1, "high": 4}, 5, False),
    ],
)
def test_a_condition_on_a_range_names_a_value_that_comes_up(entry: Any, value: float, possible: bool) -> None:
    space = {"objective.alpha": entry, "objective.lam": {"choices": [0.1], "when": {"objective.alpha": value}}}
    make = lambda: SweepConfig.model_validate({"space": space, "sampler": "random", "trials": 1})  # noqa: E731
    if possible:
        assert applies(make().space["objective.lam"], {"objective.alpha": value})
    else:
        with pytest.raises(ValueError, match="would never be tried"):
            make()


def test_a_section_comes_back_from_the_storage_as_it_was() -> None:
    section = {"name": "alpha_beta", "a": 0.2, "b": 0.7}
    entry = Choices(choices=["kl", section, None, 3])
    assert [decoded(entry, encoded(choice)) for choice in entry.choices] == entry.choices


def test_a_trial_s_settings_are_in_their_places_and_the_rest_is_as_it_was(sweep_config) -> None:
    config = sweep_config()
    tree = yaml.safe_load(dump_yaml(config))
    changed = trial_tree(tree, {"objective.alpha": 0.5, "student": {"kind": "pretrained", "model": "x"}})
    assert changed["objective"]["alpha"] == 0.5
    assert changed["objective"]["lam"] == 0.1
    assert changed["student"] == {"kind": "pretrained", "model": "x"}
    assert "sweep" not in changed
    assert tree["objective"]["alpha"] == -0.5, "the sweep's own tree is not touched"


def test_a_section_whose_kind_changes_keeps_what_the_new_kind_has_too(sweep_config) -> None:
    tree = yaml.safe_load(dump_yaml(sweep_config()))
    changed = parse(trial_tree(tree, {"policy.kind": "on_policy", "teacher.kind": "cached"}))
    assert changed.policy.kind == "on_policy"
    assert changed.teacher is not None
    assert changed.teacher.kind == "cached"
    assert changed.teacher.model == tree["teacher"]["model"], "what both kinds have stays"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"objective.alfa": [1, 2]}, "did you mean objective.alpha"),
        ({"objectve.alpha": [1, 2]}, "did you mean objective"),
        ({"objective.alpha.x.y": [1, 2]}, "no key 'x'"),
        ({"data.max_rows.x": [1, 2]}, "single value"),
        ({"output.folder": ["a", "b"]}, "a folder of its own"),
        ({"training.seed": [1, 2]}, "sweep.seeds"),
        ({"sweep.trials": [1, 2]}, "does not vary itself"),
        ({"objective.lam": {"low": 0.5, "high": 1.5}}, r"1 of 3 .*|within \[0, 1\]"),
        ({"objective.divergence": ["kl", "kll"]}, "objective.divergence = kll"),
        ({"training.warmup_stepz": [1, 2]}, "warmup_stepz"),
        (
            {"objective.between": ["teacher||assistant", "teacher||student"], "objective.alpha": [-1.0, 0.0]},
            "no assistant",
        ),
        ({"student.config.hidden_size": [8, 16]}, "student.config"),
    ],
)
def test_what_cannot_be_run_is_said_before_the_start(sweep_config, space: dict[str, Any], said: str) -> None:
    config = sweep_config(sweep={"space": space, "sampler": "random", "trials": 3})
    with pytest.raises(SettingError, match=said):
        check_space(config, yaml.safe_load(dump_yaml(config)), config.sweep.space)


def test_ready_spaces_can_be_run_and_alpha_is_left_out_where_there_is_no_assistant(sweep_config) -> None:
    for name, count in (("alpha", 8), ("alpha*lambda", 40), ("divergence × between × alpha", 4 * (2 * 8 + 1))):
        config = sweep_config(sweep={"space": name})
        check_space(config, yaml.safe_load(dump_yaml(config)), config.sweep.space)
        assert len(list(combinations(config.sweep.space))) == count


def test_a_key_that_a_stage_sets_too_is_refused(sweep_config) -> None:
    stages = [{"name": "one", "training": {"learning_rate": 0.1}}, {"name": "two"}]
    config = sweep_config(stages=stages, sweep={"space": {"training.learning_rate": [0.01, 0.02]}})
    with pytest.raises(SettingError, match="stage one sets it too"):
        check_space(config, yaml.safe_load(dump_yaml(config)), config.sweep.space)
