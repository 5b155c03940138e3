"""How far tokenizing has come: a Rich bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_QUIET = 60.0  # seconds between two lines


class TokenProgress:
    """Documents, megabytes and megabytes a second of the split at hand; how many there are in all is not known."""

    def __init__(self, folder: Path) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("tokenizing {task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._folder = folder
        self._said = time.monotonic()

    def of(self, split: str) -> Any:
        """A function to call with the record of each chunk of ``split`` that is done."""
        task = self._bar.add_task(split, total=None)
        began, totals = time.monotonic(), {"documents": 0, "bytes": 0}

        def on_chunk(record: dict[str, Any]) -> None:
            for name in totals:
                totals[name] += record[name]
            megabytes, seconds = totals["bytes"] / 1e6, time.monotonic() - began
            state = f"{split}: {totals['documents']:,} documents, {megabytes:,.0f} MB, {megabytes / seconds:.1f} MB/s"
            self._bar.update(task, description=state)
            self._say_now_and_then(state)

        return on_chunk

    def _say_now_and_then(self, state: str) -> None:
        if not self._console.is_terminal and time.monotonic() - self._said >= _QUIET:
            print(f"tokenizing {state}", flush=True)
            self._said = time.monotonic()

    def __enter__(self) -> Self:
        print(f"tokenizing into {self._folder}, once for this text and tokenizer; can be interrupted", flush=True)
        self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._bar.stop()
