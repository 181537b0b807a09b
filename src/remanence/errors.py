"""What went wrong, said to a person."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one sentence that says what was given, what is allowed and what to change. The command line prints
    it without a traceback and ends with exit code 2.
    """


class SettingWarning(UserWarning):
    """A setting has no effect, or not the one that its name promises, or one that is likely to be regretted."""
