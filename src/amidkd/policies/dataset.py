"""Learn from the data set as it is."""

from typing import Any, final

from amidkd.policies.base import StepPlan, check_state

__all__ = ["DatasetPolicy"]


@final
class DatasetPolicy:
    """Learn from the data set's rows, off-policy; also from text that was written to them beforehand."""

    def choose(self, plan: StepPlan) -> None:
        """None: the data set's rows."""

    def report(self) -> dict[str, float]:
        """Nothing to say."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing: this policy remembers nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up nothing.

        Raises:
            SettingError: The state is another policy's.
        """
        check_state(state)
