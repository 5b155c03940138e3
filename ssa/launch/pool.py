"""Training runs on this machine or a cluster: finished ones are skipped, interrupted ones resumed."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from ssa.errors import UserError
from ssa.launch.cluster import PROCESSES, launch
from ssa.launch.run import Run
from ssa.processes import Pool
from ssa.progress import ProgressBar, Row, counted
from ssa.record.inputs import check_inputs
from ssa.training.inputs import read_inputs


def train(runs: Sequence[Run], *, jobs: int, console: Console, rerun: bool = False) -> list[Path]:
    """Runs all with `run_all`, and returns their folders in order.

    Raises:
        UserError: overrides are refused, before anything is run; or some runs failed, at the end.
    """
    folders = [run.folder for run in runs]
    failed = run_all(runs, jobs=jobs, console=console, rerun=rerun)
    if failed:
        raise UserError(failures(failed))
    return folders


def failures(failed: dict[Run, str]) -> str:
    """One line: the first failure, and the number of others, which were printed as they failed."""
    run, reason = next(iter(failed.items()))
    more = f"; and {len(failed) - 1} more, named above" if len(failed) > 1 else ""
    return f"{counted(len(failed), 'runs')} failed: {run.label}: {reason}{more}; rerun the command to retry"


def run_all(
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
    """Runs what is not finished, resuming what was interrupted; one that fails does not affect the others.

    Runs already in progress elsewhere are awaited.  A failure is printed at once, with its log, and at the end a table
    of the outcomes.

    Args:
        runs: equal ones are run once.
        jobs: processes at once, of one thread each.
        console: for progress.
        rerun: start over what is finished.
        fail_fast: stop at the first failure; runs in progress save a checkpoint.
        launcher: ``processes`` on this machine, or an option of ``hydra/launcher``, which takes all runs as its jobs.
        launcher_overrides: ``hydra.launcher.KEY=VALUE``.
        output_dir: for the launcher's own files.

    Returns:
        The failed runs, each with the reason in one line.

    Raises:
        UserError: overrides are refused and ``fail_fast`` is set, or there is no such launcher.
    """
    failed = refused(runs)
    unique = list({run.folder: run for run in runs if run not in failed}.values())
    failed |= {} if rerun else changed(unique)
    if failed and fail_fast:
        raise UserError(next(f"{run.label}: {reason}" for run, reason in failed.items()))
    for run, reason in failed.items():
        console.print(f"failed: {run.label}: {reason}", markup=False)
    waiting = [run for run in unique if run not in failed and (rerun or not run.is_finished())]
    done = len(unique) - len(waiting) - len(failed.keys() & unique)
    if done:
        console.print(f"{done} of {len(unique)} runs have finished before")
    if waiting and launcher == PROCESSES:
        failed |= _train_here(waiting, jobs, console, rerun=rerun, fail_fast=fail_fast)
    elif waiting:
        launch(waiting, launcher, output_dir, launcher_overrides, rerun=rerun)
        failed |= {run: f"{run.last_line}  ({run.log})" for run in waiting if not run.is_finished()}
    if waiting:
        console.print(outcome(runs, failed))
    return failed


def refused(runs: Iterable[Run]) -> dict[Run, str]:
    """Runs whose overrides are refused, each with the reason."""
    return {run: run.refusal for run in runs if run.refusal}


def changed(runs: Iterable[Run]) -> dict[Run, str]:
    """Finished runs whose text, tokenizer or pretrained weights have changed since, each with the reason."""
    read, found = functools.cache(read_inputs), {}
    for run in (run for run in runs if run.is_finished()):
        try:
            check_inputs(run.folder, run.config.init_from, read(run.config.data, run.config.init_from))
        except UserError as error:
            found[run] = str(error)
    return found


def outcome(runs: Iterable[Run], failed: dict[Run, str]) -> Table:
    """A table with one row per group and setting: how many seeds are ok, failed, not run."""
    table = Table("runs", "ok", "failed", "not run", box=box.SIMPLE_HEAD)
    counts: dict[str, Counter[str]] = {}
    for run in dict.fromkeys(runs):
        state = "failed" if run in failed else "ok" if run.is_finished() else "not run"
        counts.setdefault(run.group_label, Counter())[state] += 1
    for label, count in counts.items():
        table.add_row(label, *(str(count[state]) if count[state] else "" for state in ("ok", "failed", "not run")))
    return table


def _train_here(runs: Sequence[Run], jobs: int, console: Console, *, rerun: bool, fail_fast: bool) -> dict[Run, str]:
    """Trains in processes of this machine; returns the failed runs, each with the reason."""
    pool: Pool[Run] = Pool(jobs, rerun=rerun)
    done: set[Run] = set()
    failed: dict[Run, str] = {}

    def tokens(run: Run) -> int:
        if run in done or run in failed:
            return run.tokens
        return run.tokens_done() if not rerun or run.is_in_use() else 0

    def show() -> None:
        state = f"{len(done)} of {len(runs)} done, {len(pool.active)} running"
        state += f", {len(failed)} failed" if failed else ""
        rows = [
            Row(f"  {run.label}", run.tokens_done(), run.tokens, "" if process else "by another launcher")
            for run, process in pool.active.items()
        ]
        bar.update(sum(map(tokens, runs)), state, rows)

    total, before = sum(run.tokens for run in runs), sum(map(tokens, runs))
    bar = ProgressBar("all runs", total, completed=before, unit="tokens", interval=30.0, console=console)
    with pool, bar:
        for run, code in pool.run(runs, show):
            if code == 0:
                done.add(run)
                continue
            failed[run] = run.reason(code)
            console.print(f"failed: {run.label}: {failed[run]}", markup=False)
            if fail_fast:
                break
    return failed
