"""The off-policy policy is the identity and remembers nothing."""

import pytest

from amidkd.config import DatasetPolicy as Settings
from amidkd.data import Example, collate
from amidkd.errors import SettingError
from amidkd.policies import DatasetPolicy, Policy, make_policy


def test_identity() -> None:
    batch = collate([Example((1, 2, 3), (False, False, True), row=0)], pad_id=0)
    policy = make_policy(Settings())
    assert isinstance(policy, Policy)
    assert isinstance(policy, DatasetPolicy)
    assert policy(batch) is batch
    assert policy.state() == {}
    policy.load_state({})


def test_the_state_of_another_policy_is_refused() -> None:
    with pytest.raises(SettingError, match=r"state of another policy \(buffer\)"):
        DatasetPolicy().load_state({"buffer": [1]})
