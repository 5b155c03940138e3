"""Append-only log of finished requests, so that an interrupted task resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ssa.files import hash_of, locked


class Journal:
    """Answers by what was asked, in a file that only grows, a line each.

    Args:
        folder: where the file is, from the first answer on.
        task: its name.
        of: all that decides the answers; each such has its own file.
    """

    def __init__(self, folder: Path, task: str, of: object) -> None:
        self.path = folder / f".{task}.{hash_of([of])[:12]}.journal"
        self._known: dict[str, Any] = {}
        self._read()

    @classmethod
    @contextmanager
    def alone(cls, folder: Path, task: str, of: object) -> Iterator[Self]:
        """The journal, which no other process has within the block.

        Raises:
            UserError: another one has it.
        """
        lock = folder / f".{task}.{hash_of([of])[:12]}.lock"
        with locked(lock, in_use=f"{folder}: task {task} is already running in another process"):
            yield cls(folder, task, of)

    def get(self, asked: object) -> Any:
        """The answer, None where there is none yet."""
        return self._known.get(_key(asked))

    def add(self, answers: list[tuple[object, Any]]) -> None:
        """Keeps answers: when this returns, the operating system has them."""
        lines = {_key(asked): answer for asked, answer in answers}
        self._known |= lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write("".join(f"{json.dumps([key, answer])}\n" for key, answer in lines.items()).encode())

    def remove(self) -> None:
        """The task is done."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> None:
        """What is there; a last line that a kill has torn is cut off, one that is damaged asked again."""
        if not self.path.exists():
            return
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:
            os.truncate(self.path, self.path.stat().st_size - len(torn))
        for line in lines:
            try:
                key, answer = json.loads(line)
                self._known[key] = answer
            except (ValueError, TypeError):
                continue


def _key(asked: object) -> str:
    return hash_of([asked])[:32]
