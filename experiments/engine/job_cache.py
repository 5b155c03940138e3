"""Cached jobs: functions of plain values, computed in parallel processes, with one file per result."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.engine.source_hash import source_hash
from ssa.errors import UserError
from ssa.files import hash_of, read_json, write_json
from ssa.launch.processes import context, live_with

CachedJob = tuple[Callable[..., Any], dict[str, Any]]  # a function of a module, and its arguments by name, plain values
_LINES_SECONDS = 15.0  # between lines of progress where there is no terminal


class JobCache:
    """Those of one context, in files that studies share.

    Args:
        folder: of the files.
        name: of the context, for its bar.
        commit: of the code, to be kept beside what it has computed.
        jobs: processes at once.
        rerun: whether to compute again what is kept.
        console: for the bar.
    """

    def __init__(self, folder: Path, name: str, commit: str, jobs: int, rerun: bool, console: Console) -> None:
        self.folder, self.name, self.commit = folder, name, commit
        self.jobs, self.rerun, self.console = jobs, rerun, console
        self.files: dict[Path, dict[str, Any]] = {}  # all that were asked for

    @property
    def seconds(self) -> float:
        """That all of them took, kept ones too, one after another."""
        return sum(float(kept["seconds"]) for kept in self.files.values())

    @property
    def commits(self) -> set[str]:
        """That they were computed at."""
        return {kept["commit"] for kept in self.files.values()}

    def compute(self, jobs: Sequence[CachedJob]) -> list[Any]:
        """What each function returns of its arguments: kept ones are read, the others computed.

        Args:
            jobs: functions of a module, so that other processes find them; arguments and results are as JSON has them.

        Raises:
            UserError: a process was killed.
        """
        files = [self.folder / f"{_name(*job)}.json" for job in jobs]
        wanted = dict(zip(files, jobs, strict=True))  # equal jobs once
        missing = {file: job for file, job in wanted.items() if self.rerun or not file.is_file()}
        if len(wanted) > len(missing):
            self.console.print(f"{len(wanted) - len(missing)} of {len(wanted)} cached jobs reused")
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._bar(len(missing)) as advance:
                for _ in _each(missing, self.commit, self.jobs):
                    advance()
        self.files |= {file: read_json(file) for file in files}
        return [self.files[file]["value"] for file in files]

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task(self.name, total=total)
            began = said = time.perf_counter()

            def advance() -> None:
                nonlocal said
                progress.advance(task)
                done, now = progress.tasks[0].completed, time.perf_counter()
                if not self.console.is_terminal and now - said > _LINES_SECONDS:
                    said, left = now, (now - began) / done * (total - done)
                    self.console.print(f"{self.name}: {done:.0f} of {total}, about {left:.0f} s left")

            yield advance


def _each(missing: Mapping[Path, CachedJob], commit: str, jobs: int) -> Iterator[None]:
    """Computes and keeps them; yields after each."""
    if jobs == 1 or len(missing) == 1:
        for file, job in missing.items():
            _keep(file, job, commit)
            yield
        return
    processes = min(jobs, len(missing))
    with ProcessPoolExecutor(processes, context("torch"), live_with, (os.getpid(),)) as pool:
        try:
            for future in as_completed([pool.submit(_keep, file, job, commit) for file, job in missing.items()]):
                future.result()
                yield
        except BrokenProcessPool:
            raise UserError(
                f"jobs={jobs}: a process was killed, most often for lack of memory; jobs=1 needs less, and the same "
                "command goes on from here"
            ) from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


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
    of = {"function": f"{function.__module__}.{function.__qualname__}", "arguments": arguments, "commit": commit}
    write_json(file, {**of, "seconds": seconds, "value": value})


def _name(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Of the file that keeps a job: the function, and a hash of its arguments and of the code it rests on."""
    key = hash_of([function.__qualname__, arguments, source_hash(function.__module__)])
    return f"{function.__name__}-{key[:16]}"
