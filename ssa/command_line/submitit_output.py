"""What submitit prints while it waits for jobs."""

from __future__ import annotations

import logging
import re
from importlib.util import find_spec
from typing import Any


def say_once() -> None:
    """Let submitit say each thing once: on a cluster without accounting it warns, and sacct fails, at every poll."""
    if find_spec("submitit") is None:
        return
    from submitit.slurm.slurm import SlurmInfoWatcher

    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = re.sub(r"\d+|\[.*\]", "", record.getMessage())  # without the numbers of calls and jobs
        new = text not in said
        said.add(text)
        return new

    logging.getLogger("submitit").addFilter(is_new)
    watcher: Any = SlurmInfoWatcher
    command = watcher._make_command  # submitit repeats what sacct says in its warning
    if command.__name__ != "_quiet":

        def _quiet(self: object) -> list[str] | None:
            asked = command(self)
            return asked and ["sh", "-c", 'exec "$@" 2> /dev/null', "sh", *asked]

        watcher._make_command = _quiet
