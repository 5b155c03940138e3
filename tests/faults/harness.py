"""Run a program under a fault, and compare the files that it leaves with those of an undisturbed run.

Faults in file operations come from `interpose.c`; kills and signals, from this process.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from programs import LIBRARIES, PATIENCE, Process, Starter

from ssa.errors import EXIT_BAD_INPUT, UserError
from ssa.record import checkpoint, records

MODULES = (*LIBRARIES, "sweeps.search", "experiments.engine.context")
TIMES = ("seconds", "tokens_per_second", "memory", "time", "commit", "files", "sha256", "versions", "began", "pid")
UNCOMPARED = ("environment*", "uncommitted*", "*.log", "*.db", "*provenance.json", "status.json")
_STEP_TIMES = re.compile(rb"(?<=on the machine: )[^;]*?\d\.\d\d(?=\.)")  # of a grid's caption
UNCOMPARED += ("*.lock", "*.seal", "*.journal")  # the next program that needs one takes it over


def preloading(folder: Path) -> Starter:
    """A starter of programs with `interpose.c` between them and the C library."""
    library = folder / "interpose.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, Path(__file__).parent / "interpose.c"], check=True)
    codes = folder / "codes"
    codes.mkdir()
    return Starter(codes, MODULES, LD_PRELOAD=str(library))


class Program(Process):
    """A program at work.

    Args:
        program: the path of a file, or ``-m`` and the name of a package.
        arguments: its arguments.
        folder: the program works in ``folder/files``, where faults happen; it may have done so before.
        fault: see `interpose.c`.
        out: ``closed`` or ``unread``; default: a file.
        environment: further variables.
    """

    def __init__(
        self,
        starter: Starter,
        program: str,
        arguments: Sequence[str],
        folder: Path,
        fault: str = "",
        out: str = "",
        **environment: str,
    ) -> None:
        attempt = len(list(folder.glob("state-*")))
        self._state = folder / f"state-{attempt}"
        self._state.write_bytes(bytes(16))
        files = folder / "files"
        files.mkdir(exist_ok=True)
        variables = {
            "SSA_FAULT_FOLDER": str(files),
            "SSA_FAULT_STATE": str(self._state),
            "SSA_FAULT": fault,
            "SSA_CACHE_DIR": str(files / "cache"),
            **environment,
        }
        super().__init__(starter, program, arguments, files, out or str(folder / f"out-{attempt}"), variables)

    @property
    def operations(self) -> int:
        """File operations so far."""
        return int(struct.unpack("ll", self._state.read_bytes())[0])

    @property
    def bytes(self) -> int:
        """Bytes written so far."""
        return int(struct.unpack("ll", self._state.read_bytes())[1])

    @property
    def hit(self) -> list[str]:
        """The operations that a fault hit: name, bytes taken, bytes, path."""
        path = self._state.with_name(f"{self._state.name}.hit")
        return path.read_text().splitlines() if path.exists() else []

    def wait(self, seconds: float = PATIENCE, operations: int | None = None) -> int | None:
        """Wait until it has ended or done so many file operations, or for so long; returns `code`."""
        until = time.monotonic() + seconds
        while (code := self.code) is None and time.monotonic() < until:
            if operations is not None and self.operations >= operations:
                break
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        """Kill it and everything that any program of the starter has left."""
        while found := self._starter.descendants():
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(found, timeout=10)
        self.wait()

    def check_one_line(self) -> str:
        """Check that it ended with exit code 2, one line on standard error, and no traceback; returns the line."""
        assert self.ended() == EXIT_BAD_INPUT, self.printed
        assert "Traceback" not in self.printed, self.printed
        (line,) = self.err.splitlines()
        assert line.startswith("error: "), line
        return line


def left(folder: Path) -> dict[str, Any]:
    """What is in ``folder/files``, by path, without what depends on the time, the folder or the code."""
    files, found = folder / "files", {}
    for path in sorted(files.rglob("*")):
        if path.is_file() and not any(path.match(pattern) for pattern in UNCOMPARED):
            found[str(path.relative_to(files))] = _comparable(path, str(folder))
    return found


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the files in which two results of `left` differ."""
    return [path for path in sorted({*one, *other}) if one.get(path) != other.get(path)]


def _comparable(path: Path, folder: str) -> Any:
    if path.suffix == ".ckpt":
        try:
            return _timeless(checkpoint.read(path), folder)
        except UserError as error:
            return str(error)
    if path.name.endswith("records.parquet"):
        with suppress(UserError):  # damaged
            return [_timeless({**asdict(record), "environment": {}}, folder) for record in records.read(path)]
    content = path.read_bytes()
    with suppress(ValueError):  # damaged
        if path.name == "metrics.jsonl":
            return [_timeless(json.loads(line), folder) for line in content.splitlines()]
        if path.suffix == ".json":
            return _timeless(json.loads(content), folder)
    return hashlib.sha256(_STEP_TIMES.sub(b"", content.replace(folder.encode(), b"FOLDER"))).hexdigest()


def _timeless(value: Any, folder: str) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest(), tuple(value.shape), str(value.dtype)
    if isinstance(value, Mapping):
        return {
            key: _timeless(item, folder) for key, item in value.items() if not any(word in str(key) for word in TIMES)
        }
    if isinstance(value, list | tuple):
        return [_timeless(item, folder) for item in value]
    if not isinstance(value, str):
        return value
    return _STEP_TIMES.sub(b"", value.replace(folder, "FOLDER").encode())
