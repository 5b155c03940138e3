"""Training runs, several at once; finished ones are not run again, and one that fails does not touch the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from ssa.errors import UserError
from ssa.launch.run import Run, start

_POLL_SECONDS = 0.5
_LINES_SECONDS = 30.0
PROCESSES = "processes"  # the launcher of this module; others are Hydra's


def train(runs: Sequence[Run], *, jobs: int, console: Console, rerun: bool = False) -> list[Path]:
    """The folders of runs that have all finished, in order: `bring`, where nothing may fail.

    Raises:
        UserError: overrides are refused, before anything is run; or some runs failed, at the end.
    """
    folders = [run.folder for run in runs]
    failed = bring(runs, jobs=jobs, console=console, rerun=rerun)
    if failed:
        names = ", ".join(f"{run.label} ({run.log})" for run in failed)
        raise UserError(f"{len(failed)} of {len(set(folders))} runs failed: {names}; the same command runs them again")
    return folders


def bring(
    runs: Sequence[Run],
    *,
    jobs: int,
    console: Console,
    rerun: bool = False,
    fail_fast: bool = False,
    launcher: str = PROCESSES,
    launcher_overrides: Sequence[str] = (),
    output_dir: Path = Path("outputs"),
) -> dict[Run, str]:
    """Brings runs to their end: what is finished is skipped, what was interrupted goes on.

    A run that another process is at is waited for.  One that fails is named at once, with its log; at the end a table
    says what became of all.

    Args:
        runs: equal ones are run once.
        jobs: processes at once, of one thread each.
        console: for progress.
        rerun: start over what is finished.
        fail_fast: stop at the first failure; the runs at work save where they are.
        launcher: ``processes`` on this machine, or an option of ``hydra/launcher``, which takes all runs as its jobs.
        launcher_overrides: ``hydra.launcher.KEY=VALUE``.
        output_dir: for the launcher's own files.

    Returns:
        What failed, and why, in a line.

    Raises:
        UserError: overrides are refused and ``fail_fast`` is set, or there is no such launcher.
    """
    failed = refused(runs)
    unique = list({run.folder: run for run in runs if run not in failed}.values())
    if failed and fail_fast:
        raise UserError(next(f"{run.label}: {reason}" for run, reason in failed.items()))
    for run, reason in failed.items():
        console.print(f"failed: {run.label}: {reason}", markup=False)
    waiting = [run for run in unique if rerun or not run.is_finished()]
    if len(unique) > len(waiting):
        console.print(f"{len(unique) - len(waiting)} of {len(unique)} runs have finished before")
    if waiting and launcher == PROCESSES:
        failed |= _Pool(waiting, jobs, console, rerun, fail_fast).finish()
    elif waiting:
        from ssa.launch.cluster import launch

        launch(waiting, launcher, output_dir, launcher_overrides, rerun=rerun)
        failed |= {run: f"{run.last_line}  ({run.log})" for run in waiting if not run.is_finished()}
    if waiting:
        console.print(_outcome(list(runs), failed))
    return failed


def refused(runs: Iterable[Run]) -> dict[Run, str]:
    """Runs whose overrides are refused, and why."""
    return {run: run.refusal for run in runs if run.refusal}


def _outcome(runs: Sequence[Run], failed: dict[Run, str]) -> Table:
    """How many of each kind are ok; a kind is a label without its seed."""
    table = Table("runs", "ok", "failed", "not run", box=box.SIMPLE_HEAD)
    counts: dict[str, Counter[str]] = {}
    for run in {run.label: run for run in runs}.values():
        state = "failed" if run in failed else "ok" if run.is_finished() else "not run"
        counts.setdefault(run.label.partition(", seed ")[0], Counter())[state] += 1
    for label, count in counts.items():
        table.add_row(label, *(str(count[state]) if count[state] else "" for state in ("ok", "failed", "not run")))
    return table


def _ending(run: Run, code: int | None) -> str:
    """Of a run that failed: why."""
    return run.last_line if code is None or code >= 0 else f"killed by signal {-code}"


class _Pool:
    """Runs at work on this machine, and what the terminal shows of them."""

    def __init__(self, waiting: list[Run], jobs: int, console: Console, rerun: bool, fail_fast: bool) -> None:
        self.waiting, self.jobs, self.console = list(waiting), jobs, console
        self.rerun, self.fail_fast = rerun, fail_fast
        self.total, self.runs = sum(run.tokens for run in waiting), len(waiting)
        self.before = {run.folder: 0 if rerun else run.tokens_done() for run in waiting}  # trained by earlier attempts
        self.running: dict[Run, BaseProcess | None] = {}  # None: another launcher's
        self.done: list[Run] = []
        self.failed: dict[Run, str] = {}
        self.bars: dict[Run, TaskID] = {}

    def finish(self) -> dict[Run, str]:
        """Runs all, and returns those that failed."""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
        try:
            with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
                whole = progress.add_task("all runs", total=self.total, text="")
                began = said = time.perf_counter()
                while (self.waiting or self.running) and not (self.failed and self.fail_fast):
                    self._start()
                    self._collect()
                    now = time.perf_counter()
                    tokens = self._tokens()
                    text = self._text(tokens, now - began)
                    progress.update(whole, completed=tokens, text=text)
                    self._show(progress)
                    if not self.console.is_terminal and now - said > _LINES_SECONDS:
                        self.console.print(text)
                        said = now
                    time.sleep(_POLL_SECONDS)
        finally:
            self._stop()  # where some are still at work
        return self.failed

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.jobs:
            run = self.waiting.pop(0)
            self.running[run] = None if run.is_in_use() else start(run, self.rerun)

    def _collect(self) -> None:
        for run, process in list(self.running.items()):
            if process is None:
                if run.is_in_use():
                    continue
                del self.running[run]
                if run.is_finished():
                    self.done.append(run)
                else:
                    self.waiting.append(run)
            elif not process.is_alive():
                del self.running[run]
                process.join()
                if process.exitcode == 0:
                    self.done.append(run)
                elif run.is_in_use() or (run.is_finished() and not self.rerun):  # another launcher was faster
                    self.waiting.append(run)
                else:
                    self.failed[run] = f"{_ending(run, process.exitcode)}  ({run.log})"
                    self.console.print(f"failed: {run.label}: {self.failed[run]}", markup=False)

    def _show(self, progress: Progress) -> None:
        """A line for each run at work."""
        for run in [run for run in self.bars if run not in self.running]:
            progress.remove_task(self.bars.pop(run))
        for run, process in self.running.items():
            text = "" if process else "by another launcher"
            if run not in self.bars:
                self.bars[run] = progress.add_task(f"  {run.label}", total=run.tokens, text=text)
            progress.update(self.bars[run], completed=run.tokens_done())

    def _tokens(self) -> int:
        finished = sum(run.tokens for run in (*self.done, *self.failed))
        going_on = [run for run in (*self.running, *self.waiting) if not self.rerun or run.is_in_use()]
        return finished + sum(run.tokens_done() for run in going_on)

    def _text(self, tokens: int, seconds: float) -> str:
        speed = (tokens - sum(self.before.values())) / seconds
        left = f"{(self.total - tokens) / speed / 60:.0f} min" if speed > 0 else "?"
        state = f"{len(self.done)} of {self.runs} runs done, {len(self.running)} running"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{state}{failed}  {speed:,.0f} tokens/s  ETA {left}"

    def _stop(self) -> None:
        """Lets each run save where it is; the same command goes on from there."""
        for process in filter(None, self.running.values()):
            process.terminate()
        for process in filter(None, self.running.values()):
            process.join()
