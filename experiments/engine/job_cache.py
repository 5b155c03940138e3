"""Cached jobs: functions of plain values, computed in parallel processes, with one file per result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.engine.source_hash import source_hash
from ssa.errors import UserError
from ssa.files import hash_of, read_checked, with_checksum, write_json
from ssa.processes import call_each
from ssa.progress import ProgressBar
from ssa.redaction import redacted

CachedJob = tuple[Callable[..., Any], dict[str, Any]]  # a function of a module, and its arguments by name, plain values
_LINES_SECONDS = 15.0  # between lines of progress where there is no terminal


class JobCache:
    """The cached jobs of one experiment, in files that experiments share, each with the commit of its code."""

    def __init__(self, folder: Path, name: str, commit: str, jobs: int, rerun: bool, console: Console) -> None:
        self.folder, self.name, self.commit = folder, name, commit
        self.jobs, self.rerun, self.console = jobs, rerun, console
        self.files: dict[Path, dict[str, Any]] = {}  # of every job so far

    @property
    def seconds(self) -> float:
        """Total compute time of the jobs, cached ones included, in seconds."""
        return sum(float(kept["seconds"]) for kept in self.files.values())

    @property
    def commits(self) -> set[str]:
        """Commits that the results were computed at."""
        return {kept["commit"] for kept in self.files.values()}

    def compute(self, jobs: Sequence[CachedJob]) -> list[Any]:
        """Returns the result of each job, cached or computed now.

        Args:
            jobs: functions of a module, which other processes can import; arguments and results are JSON values.

        Raises:
            UserError: a process was killed.
        """
        files = [self.folder / f"{_name(*job)}.json" for job in jobs]
        wanted = dict(zip(files, jobs, strict=True))  # equal jobs once
        known = {file: None if self.rerun else read_checked(file) for file in wanted}
        for file in (file for file, kept in known.items() if kept is None and file.is_file() and not self.rerun):
            self.console.print(f"{file}: damaged, or of another version; computed again", markup=False)
        missing = {file: job for file, job in wanted.items() if known[file] is None}
        if len(wanted) > len(missing):
            self.console.print(f"{len(wanted) - len(missing)} of {len(wanted)} cached jobs reused")
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            with ProgressBar(self.name, len(missing), interval=_LINES_SECONDS, console=self.console) as bar:
                calls = ((file, job, self.commit) for file, job in missing.items())
                for _ in call_each(_keep, calls, jobs=self.jobs, preload="torch"):
                    bar.advance()
        self.files |= {file: known[file] or _read(file) for file in wanted}
        return [self.files[file]["value"] for file in files]


def _keep(file: Path, job: CachedJob, commit: str) -> None:
    import torch

    (function, arguments), began = job, time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads depend on how many there are
    try:
        value = function(**arguments)
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - began
    of = {
        "function": f"{function.__module__}.{function.__qualname__}",
        "arguments": redacted(arguments),
        "commit": commit,
    }
    write_json(file, with_checksum({**of, "seconds": seconds, "value": value}))


def _read(file: Path) -> dict[str, Any]:
    if (kept := read_checked(file)) is None:
        raise UserError(f"{file}: changed since it was written; rerun the command")
    return kept


def _name(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Name of a job's file: the function, and a hash of its arguments and source dependencies."""
    key = hash_of([function.__qualname__, arguments, source_hash(function.__module__)])
    return f"{function.__name__}-{key[:16]}"
