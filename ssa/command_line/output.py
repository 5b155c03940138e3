"""Standard output and error whose reader may go away."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ssa.redaction import redacted_output

_GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, such as head; a closed terminal
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def keep_writable(*, when_full: bool = False) -> None:
    """From now on what this process prints is dropped where nobody can read it, and the work goes on.

    Characters that the terminal lacks are replaced.

    Args:
        when_full: drop also what a full disk has no room for, such as that of a log.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed from the start
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        elif stream is getattr(sys, f"__{name}__"):  # not one of a test or a notebook
            stream.flush()
            output = _Output(number, "w", closefd=False)
            output.when_full = when_full
            buffer = io.BufferedWriter(output)  # type: ignore[type-var]
            errors = "replace" if name == "stdout" else stream.errors
            wrapped = io.TextIOWrapper(buffer, stream.encoding, errors, line_buffering=stream.line_buffering)
            setattr(sys, name, wrapped)


@contextmanager
def log_output() -> Iterator[None]:
    """In this block, what is printed is redacted, and dropped where the log's disk is full."""
    keep_writable(when_full=True)
    with redacted_output():
        yield


class _Output(io.FileIO):
    when_full = False

    def write(self, content: bytes) -> int:  # type: ignore[override]
        try:
            return super().write(content)
        except OSError as error:
            if not (self.when_full and error.errno in _FULL):  # a disk may have room again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # the rest, which Python writes at its exit
                if error.errno not in _GONE:
                    error.filename = "standard output" if self.fileno() == 1 else "standard error"
                    raise
            return len(content)
