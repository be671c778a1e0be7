"""The off-policy policy leaves the data set's rows and remembers nothing."""

import pytest
from plans import plan, room

from amidkd.config import DatasetPolicy as Settings
from amidkd.config import SequenceLevelPolicy
from amidkd.errors import SettingError
from amidkd.policies import DatasetPolicy, Policy, make_policy


@pytest.mark.parametrize("settings", [Settings(), SequenceLevelPolicy()])
def test_the_rows_of_the_data_set(settings) -> None:
    policy = make_policy(settings, room())
    assert isinstance(policy, Policy)
    assert isinstance(policy, DatasetPolicy)
    assert policy.choose(plan(0)) is None
    assert policy.state() == policy.report() == {}
    policy.load_state({})


def test_the_state_of_another_policy_is_refused() -> None:
    with pytest.raises(SettingError, match=r"state of another policy \(entries: buffer\)"):
        DatasetPolicy().load_state({"buffer": [1]})
