"""What the package raises and warns when a setting is wrong or has no effect."""

__all__ = ["GenerationError", "LossError", "SettingError", "SettingWarning", "TeacherError"]


class SettingError(ValueError):
    """A setting, file or row that cannot be used; the message names it, its value and the fix.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class SettingWarning(UserWarning):
    """A setting that has no effect in this run, or a run that starts where it cannot learn."""


class LossError(RuntimeError):
    """The loss is not finite: names the step, the rows of the batch and the likely cause.

    Raised before the optimizer's step, so that weights and checkpoints stay good.
    """


class GenerationError(RuntimeError):
    """Text could not be written: the server is gone, and trying again did not help.

    A run saves a checkpoint and stops; going on from it asks again.
    """


class TeacherError(RuntimeError):
    """The teacher cannot answer now: its server is gone, or its cache cannot be read.

    A run saves a checkpoint and stops; going on from it asks again.
    """
