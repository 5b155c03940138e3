"""Evaluations of finished runs, several at once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console

from ssa.errors import UserError
from ssa.files import locked
from ssa.launch.processes import context, live_with
from ssa.launch.run import Run


def evaluate(runs: Sequence[Run], arguments: Sequence[str], jobs: int, console: Console) -> dict[Run, str]:
    """``python evaluate.py run=RUN ARGUMENTS`` for each run, which skips what it has finished before.

    Args:
        runs: finished ones.
        arguments: ``KEY=VALUE``, such as ``tasks=passkey``.
        jobs: at once, of one thread each.
        console: for progress and failures.

    Returns:
        What failed, and why, in a line; a run's log has what was printed.
    """
    failed: dict[Run, str] = {}
    with ProcessPoolExecutor(jobs, context("ssa.training.train"), live_with, (os.getpid(),)) as pool:
        try:
            jobs_of = [(str(run.folder), str(run.log), tuple(arguments)) for run in runs]
            reasons = [pool.submit(_evaluate, job) for job in jobs_of]
            for number, (run, reason) in enumerate(zip(runs, map(_outcome, reasons), strict=True), 1):
                if reason:
                    failed[run] = f"evaluation: {reason}  ({run.log})"
                    console.print(f"failed: {run.label}: {failed[run]}", markup=False)
                if number % 10 == 0 or number == len(runs):
                    console.print(f"evaluated {number} of {len(runs)} runs")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def _outcome(reason: Future[str]) -> str:
    try:
        return reason.result()
    except BrokenProcessPool:
        return "a process was killed, most often for lack of memory; jobs=1 needs less"


def _evaluate(job: tuple[str, str, tuple[str, ...]]) -> str:
    """In a process of the pool: what went wrong, or nothing."""
    import torch

    from ssa.command_line.settings import parse
    from ssa.evaluation import evaluate as evaluation
    from ssa.evaluation.settings import EvaluateSettings

    run, log, arguments = Path(job[0]).resolve(), Path(job[1]), job[2]
    torch.set_num_threads(1)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        began = file.tell()
    try:
        with locked(run.with_name(f".{run.name}.evaluation.lock")):  # then what another launcher evaluated is kept
            evaluation.evaluate(parse(EvaluateSettings, [f"run={run}", *arguments]))
    except UserError as error:
        sys.stdout.flush()
        printed = log.read_bytes()[began:].decode(errors="replace").splitlines()
        print("error:", error, file=sys.stderr)
        return "; ".join(line.removeprefix("error: ") for line in printed if line.startswith("error: ")) or str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
    return ""
