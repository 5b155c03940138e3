"""Errors that the user can fix, and exit codes."""

EXIT_BUG = 1
EXIT_BAD_INPUT = 2
EXIT_LOST = 69  # of a process whose run lost another process: sysexits.h's EX_UNAVAILABLE
EXIT_DISK = 74  # of a run started by a pool: sysexits.h's EX_IOERR
EXIT_INTERRUPTED = 130
_LONGEST = 1500  # characters of a line, which may quote a file


class UserError(Exception):
    """Bad input: one line naming the field, the value and what is valid.  Programs print it and exit with 2."""

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}")


class DiskError(UserError):
    """A file cannot be written, because the disk is full or read-only, for example."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, shortened: some quote a whole file."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-97:]}"


class RankFailed(SystemExit):
    """Another process of this run has failed, and says why itself.

    Attributes:
        reason: what it said.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class NotFinite(UserError):
    """A model's output, or a statistic of it, is NaN or infinite."""

    def __init__(self, quantity: str, value: float) -> None:
        super().__init__(f"{quantity} is {value:g}: the model's weights are damaged, or its values overflow")


class TrainingDiverged(UserError):
    """The loss or its gradient is no longer finite, most often because the learning rate is too high."""

    def __init__(self, step: int, loss: float, lr: float, grad_norm: float, checkpoint: str) -> None:
        super().__init__(
            f"the loss is not finite at step {step}: loss {loss:g}, lr {lr:g}, gradient norm {grad_norm:g}; "
            f"last good checkpoint: {checkpoint}; a lower optim.lr or a longer optim.warmup_steps may help"
        )
