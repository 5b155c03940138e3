"""How far a task has come: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_QUIET = 60.0  # seconds between two lines


class TaskProgress:
    """Tokens done of a task's tokens, tokens/s and time left."""

    def __init__(self, name: str) -> None:
        self._console = Console(file=sys.stderr)  # this very stream, whatever becomes of sys.stderr
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TaskProgressColumn())
        self._bar = Progress(
            *columns,
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._name = name
        self._task = self._bar.add_task(name, total=None, speed="")
        self._began = self._said = time.monotonic()
        self._done = self._total = 0

    def expect(self, tokens: int) -> None:
        """So many more are to be done."""
        self._total += tokens
        self._bar.update(self._task, total=self._total)

    def advance(self, tokens: int) -> None:
        """So many more are done."""
        self._done += tokens
        now = time.monotonic()
        speed = f"{self._done / max(now - self._began, 1e-9):,.0f} tokens/s"
        self._bar.update(self._task, completed=self._done, speed=speed)
        if not self._console.is_terminal and now - self._said >= _QUIET:
            self._console.print(f"{self._name}: {self._done / max(self._total, 1):.0%}, {speed}", highlight=False)
            self._said = now

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()
