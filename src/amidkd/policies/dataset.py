"""Whose sequences a step learns from."""

from typing import Any, Protocol, final, runtime_checkable

from amidkd.config import DatasetPolicy as DatasetPolicyConfig
from amidkd.config import PolicyConfig
from amidkd.data import Sequences
from amidkd.errors import SettingError

__all__ = ["DatasetPolicy", "Policy", "make_policy"]


@runtime_checkable
class Policy(Protocol):
    """Turns the batch that the data loader gives into the batch to learn from.

    It runs before supervised tokens are counted, so what it generates is counted too.
    """

    def __call__(self, sequences: Sequences) -> Sequences:
        """The batch to learn from, in place of or beside the one given."""

    def state(self) -> dict[str, Any]:
        """Everything that an exact resume needs, such as a replay buffer; JSON and tensors."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state that :meth:`state` gave."""


@final
class DatasetPolicy:
    """Learn from the data set as it is (off-policy)."""

    def __call__(self, sequences: Sequences) -> Sequences:
        """The batch itself."""
        return sequences

    def state(self) -> dict[str, Any]:
        """Nothing: this policy remembers nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up nothing.

        Raises:
            SettingError: The state is another policy's.
        """
        if state:
            raise SettingError(
                f"policy: the checkpoint holds the state of another policy ({', '.join(sorted(state))}); "
                "resume with the run file that it was made with"
            )


def make_policy(config: PolicyConfig) -> Policy:
    """The policy that a run file's ``policy`` section asks for.

    Raises:
        SettingError: A kind that there is no policy for.
    """
    if isinstance(config, DatasetPolicyConfig):
        return DatasetPolicy()
    raise SettingError(f"policy.kind: there is no policy for {config!r}")
