"""What went wrong, said to a person."""

LONGEST = 2000
"""Characters of a message."""


class InputError(ValueError):
    """What was given cannot be used.

    The message is one sentence that says what was given, what is allowed and what to change. The command line prints
    it without a traceback and ends with exit code 2. Parts of it may come from a file that nobody trusts: what a
    terminal would obey is shown as an escape, and of very long ones the middle is left out.
    """

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__("".join(each if each.isprintable() else ascii(each)[1:-1] for each in message))


class SettingWarning(UserWarning):
    """A setting has no effect, or not the one that its name promises, or one that is likely to be regretted."""


class DamageWarning(UserWarning):
    """Something that was saved is damaged, and something older is used instead."""


class Elsewhere(InputError):
    """Another process of the same run has met an error, and tells it to the person."""
