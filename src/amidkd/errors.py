"""What the package raises and warns when a setting is wrong or has no effect."""

__all__ = ["SettingError", "SettingWarning"]


class SettingError(ValueError):
    """A setting, file or row that cannot be used; the message names it, its value and the fix.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class SettingWarning(UserWarning):
    """A setting that has no effect in this run, or a run that starts where it cannot learn."""
