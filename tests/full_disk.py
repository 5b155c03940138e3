"""A disk that fills in the middle of a write."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import IO, Any

import pytest


class Full(io.FileIO):
    """A file that has room for some bytes: a write takes those that fit, and fails where none does."""

    room = 0

    def write(self, content: Any) -> int:
        taken = bytes(content)[: self.room]
        if content and not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(taken)
        return super().write(taken)


def fill_disk(monkeypatch: pytest.MonkeyPatch, name: str, room: int) -> None:
    """Give files that `Path.open` opens for writing, with ``name`` in theirs, room for so many bytes."""
    before = Path.open

    def opened(path: Path, mode: str = "r", buffering: int = -1, **options: Any) -> IO[Any]:
        if name not in path.name or mode not in ("ab", "wb"):
            return before(path, mode, buffering, **options)
        file = Full(path, mode)
        file.room = room
        return file if buffering == 0 else io.BufferedWriter(file)  # type: ignore[return-value, type-var]

    monkeypatch.setattr(Path, "open", opened)
