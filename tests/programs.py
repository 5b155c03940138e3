"""Programs of this project in processes of their own, without the seconds that imports take each time."""

from __future__ import annotations

import atexit
import functools
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from conftest import ROOT

# What takes seconds to import, or more than a tenth of one
HEAVY = {"torch", "lightning", "transformers", "datasets", "wandb", "lm_eval", "safetensors", "tokenizers", "numpy"}
HEAVY |= {"pandas", "scipy", "matplotlib", "optuna", "huggingface_hub"}
COMMAND_LINE = ("ssa.command_line.cli", "ssa.command_line.settings", "ssa.command_line.preflight")
LIBRARIES = ("generate", "ssa.training.train", "ssa.evaluation.evaluate", "ssa.export.folder")
LIBRARIES += ("ssa.evaluation.tasks.perplexity", "ssa.report.page.write")
PATIENCE = 300  # seconds
_numbers = itertools.count()


class Starter:
    """A process from which programs start that has imported some modules already; see `starter.py`."""

    def __init__(self, folder: Path, modules: Sequence[str], **environment: str) -> None:
        self.folder = folder
        self._environment = {"PYTHONPATH": str(ROOT), **environment}
        self._process = subprocess.Popen(
            [sys.executable, "-P", ROOT / "tests" / "starter.py", self.folder, *modules],
            cwd=ROOT,
            env={**os.environ, **self._environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask("")

    def _ask(self, line: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def start(self, environment: Mapping[str, str], **request: Any) -> int:
        """The id of a new process; see `starter.py`.  It has this process's environment, changed by ``environment``."""
        request["environment"] = {**os.environ, **self._environment, **environment}
        return int(self._ask(json.dumps(request) + "\n"))

    def code(self, process: int) -> int | None:
        """The exit code of a process that has ended; to be asked once, as process ids are used again."""
        path = self.folder / str(process)
        with suppress(FileNotFoundError):
            code = int(path.read_text())
            path.unlink()
            return code
        return None

    def descendants(self) -> list[psutil.Process]:
        """Every process that programs left or have at work."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def close(self) -> None:
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.kill()
        self._process.communicate()
        shutil.rmtree(self.folder)


class Process:
    """A program at work, in a session of its own; leaving the context kills it.

    Args:
        starter: what has imported its modules.
        program: the path of a file, or ``-m`` and the name of a package.
        arguments: its arguments.
        folder: the folder that it works in.
        out: the file of its output, ``closed`` or ``unread``; see `starter.py`.
        environment: changes of this process's.
        imported: a file for the names of the modules that it imports.

    Attributes:
        pid: the id of its first process.
    """

    def __init__(
        self,
        starter: Starter,
        program: str,
        arguments: Sequence[str],
        folder: Path,
        out: str,
        environment: Mapping[str, str],
        imported: str | None = None,
    ) -> None:
        self._starter, self._out = starter, out
        self._code: int | None = None
        request = {"program": program, "arguments": list(arguments), "folder": str(folder), "out": out}
        self.pid = starter.start(environment, **request, imported=imported)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    @property
    def code(self) -> int | None:
        """The exit code, negative after a signal; None while it is at work."""
        if self._code is None:
            self._code = self._starter.code(self.pid)
        return self._code

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """Wait until it has ended, or for so long; returns `code`."""
        until = time.monotonic() + seconds
        while (code := self.code) is None and time.monotonic() < until:
            time.sleep(0.002)
        return code

    def ended(self) -> int:
        """Wait until it has ended; the exit code."""
        code = self.wait()
        assert code is not None, f"still running after {PATIENCE} s: {self.printed}"
        return code

    def send(self, number: signal.Signals) -> None:
        if self.code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and its descendants in its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def out(self) -> str:
        """Standard output so far."""
        return _text(Path(self._out))

    @property
    def err(self) -> str:
        """Standard error so far."""
        return _text(Path(f"{self._out}.err"))

    @property
    def printed(self) -> str:
        """Standard output, then standard error."""
        return self.out + self.err


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


@functools.cache
def _starter(modules: tuple[str, ...]) -> Starter:
    starter = Starter(Path(tempfile.mkdtemp()), modules)
    atexit.register(starter.close)
    return starter


def start(
    *command: str,
    cwd: Path,
    modules: tuple[str, ...] = LIBRARIES,
    imported: str | None = None,
    **environment: str,
) -> Process:
    """``python COMMAND`` with modules imported beforehand; a relative path of a program is one in the root."""
    starter = _starter(modules)
    if command[0] == "-m":
        program, arguments = " ".join(command[:2]), command[2:]
    else:
        program, arguments = str(ROOT / command[0]), command[1:]
    out = str(starter.folder / f"out-{next(_numbers)}")
    return Process(starter, program, arguments, cwd, out, environment, imported)


class Outcome(NamedTuple):
    """What a program printed, and the heavy modules among those that it imported."""

    code: int
    out: str
    err: str
    heavy: set[str]


def launch(*command: str, cwd: Path) -> Outcome:
    """``python COMMAND`` to its end; at its start only the command line is imported, which is light."""
    with tempfile.NamedTemporaryFile("r") as file:
        with start(*command, cwd=cwd, modules=COMMAND_LINE, imported=file.name) as process:
            code = process.ended()
        return Outcome(code, process.out, process.err, set(file.read().split()) & HEAVY)
