"""Append-only log of finished requests, so that an interrupted task resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from ssa.files import hash_of, locked


class Journal:
    """Answers by request, one JSON line each.

    Args:
        folder: holds the file, created with the first answer.
        task: task name.
        identity: everything that determines the answers; each identity has its own file.
    """

    def __init__(self, folder: Path, task: str, identity: object) -> None:
        self.path = folder / f".{task}.{hash_of([identity])[:12]}.journal"
        self._answers = self._read()

    @classmethod
    @contextmanager
    def exclusive(cls, folder: Path, task: str, identity: object) -> Iterator[Self]:
        """The journal, locked within the block.

        Raises:
            UserError: another process holds the lock.
        """
        lock = folder / f".{task}.{hash_of([identity])[:12]}.lock"
        with locked(lock, in_use=f"{folder}: task {task} is already running in another process"):
            yield cls(folder, task, identity)

    def get(self, request: object) -> Any:
        """The answer to a request; None if there is none yet."""
        return self._answers.get(_key(request))

    def add(self, answers: list[tuple[object, Any]]) -> None:
        """Append (request, answer) pairs; on return the operating system has them."""
        lines = {_key(request): answer for request, answer in answers}
        self._answers |= lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            file.write("".join(f"{json.dumps([key, answer])}\n" for key, answer in lines.items()).encode())

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        """The file's answers: cut off a last line torn by a kill, skip damaged lines, whose requests are rerun."""
        answers: dict[str, Any] = {}
        if not self.path.exists():
            return answers
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:
            os.truncate(self.path, self.path.stat().st_size - len(torn))
        for line in lines:
            with suppress(ValueError, TypeError):
                key, answer = json.loads(line)
                answers[key] = answer
        return answers


def _key(request: object) -> str:
    return hash_of([request])[:32]
