"""What is done of a task, on disk as soon as it is done, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Journal:
    """Answers by what was asked, in a file that only grows: a line each, the first says of what they are.

    Args:
        path: the file; one of other settings is started over.
        of: all that decides the answers.
    """

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self.path = path
        self._of = json.dumps(of, sort_keys=True)
        self._known = self._read()
        if not self._known:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"of": self._of}) + "\n", encoding="utf-8")

    def get(self, asked: object) -> Any:
        """The answer, None where there is none yet."""
        return self._known.get(_key(asked))

    def add(self, answers: list[tuple[object, Any]]) -> None:
        """Keeps answers: when this returns, the operating system has them."""
        lines = {_key(asked): answer for asked, answer in answers}
        self._known |= lines
        with self.path.open("ab", buffering=0) as file:
            file.write("".join(f"{json.dumps([key, answer])}\n" for key, answer in lines.items()).encode())

    def remove(self) -> None:
        """The task is done."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            first, *lines, torn = self.path.read_text(encoding="utf-8").split("\n")
            if json.loads(first).get("of") != self._of:
                return {}
            answers = dict(json.loads(line) for line in lines)
        except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged
            return {}
        if torn:  # by a kill
            self.path.write_text("\n".join([first, *lines, ""]), encoding="utf-8")
        return answers


def _key(asked: object) -> str:
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]
