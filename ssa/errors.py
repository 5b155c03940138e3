"""Errors that are the user's to mend, and what is printed for them."""

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Bad input: one line naming the field, the value and what is valid.  The process prints it and exits with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
