"""Progress: a live bar on a terminal, a line at intervals elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Row(NamedTuple):
    """A further bar, below the main one."""

    name: str
    completed: float
    total: float
    text: str = ""


class ProgressBar:
    """One piece of work: how much is done, how fast, and the time left."""

    def __init__(
        self,
        name: str,
        total: float | None = None,  # None: not known, and no time left is shown
        *,
        completed: float = 0,  # done before the start, not counted for the speed
        unit: str = "",  # of the speed; empty: no speed
        interval: float = 60.0,  # seconds between two lines where there is no terminal
        console: Console | None = None,  # None: standard error as it is now
        transient: bool = False,  # disappears at the end
    ) -> None:
        self.name, self.total, self.completed, self.unit = name, total, completed, unit
        self.interval, self.console = interval, console or Console(file=sys.stderr)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}", markup=False),
            console=self.console,
            transient=transient,
            disable=not self.console.is_terminal,
        )
        self._main = self._bars.add_task(name, total=total, text="")
        self._bars.update(self._main, completed=completed)
        self._rows: list[TaskID] = []
        self.restart_clock()
        self._printed = self._began

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.completed - self._before) / max(time.perf_counter() - self._began, 1e-9)

    def restart_clock(self) -> None:
        """Measure the speed from here on, such as after a warm-up."""
        self._before, self._began = self.completed, time.perf_counter()

    def expect(self, amount: float) -> None:
        """Add to the total."""
        self.total = (self.total or 0) + amount
        self._bars.update(self._main, total=self.total)

    def advance(self, amount: float = 1) -> None:
        """Add to what is completed."""
        self.update(self.completed + amount)

    def update(self, completed: float, text: str = "", rows: Sequence[Row] = (), line: bool | None = None) -> None:
        """Show the current state, with ``text`` in place of ``completed/total`` and ``rows`` as further bars.

        ``line`` says whether a line is due where there is no terminal; None: by time.
        """
        self.completed = completed
        text = self._text(text)
        self._bars.update(self._main, completed=completed, text=text)
        while len(self._rows) < len(rows):
            self._rows.append(self._bars.add_task("", text=""))
        while len(self._rows) > len(rows):
            self._bars.remove_task(self._rows.pop())
        for task, row in zip(self._rows, rows, strict=True):
            self._bars.update(task, description=row.name, completed=row.completed, total=row.total, text=row.text)
        now = time.perf_counter()
        if not self.console.is_terminal and (now - self._printed >= self.interval if line is None else line):
            self.console.print(f"{self.name} {text}", highlight=False, markup=False, soft_wrap=True)
            self._printed = now

    def _text(self, text: str) -> str:
        total = "" if self.total is None else f"/{self.total:,.0f}"
        parts = [text or f"{self.completed:,.0f}{total}"]
        if self.unit:
            parts.append(f"{self.rate:,.{0 if self.rate >= 100 else 1}f} {self.unit}/s")
        if self.total is not None:
            left = max(self.total - self.completed, 0)
            parts.append(f"ETA {duration(left / self.rate) if self.rate > 0 else '?'}")
        return "  ".join(parts)

    def start(self) -> None:
        """Show the bar."""
        self._bars.start()

    def stop(self) -> None:
        """Leave the bar as it is, or remove it if it is transient."""
        self._bars.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


def counted(number: int, plural: str) -> str:
    """``1 document`` or ``1,000 documents``."""
    return f"{number:,} {plural.removesuffix('s') if number == 1 else plural}"


def duration(seconds: float) -> str:
    """``2:03``, ``1:02:03``, ``3.5 days`` or ``12 years``."""
    days = seconds / 86400
    if days >= 2:
        return f"{days:.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
