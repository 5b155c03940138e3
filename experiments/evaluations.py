"""Evaluations of finished runs, several at once."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from experiments.launch import Run
from experiments.processes import context
from ssa.errors import UserError


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
    with ProcessPoolExecutor(jobs, context("ssa.training.train")) as pool:
        reasons = pool.map(_evaluate, [(str(run.folder), str(run.log), tuple(arguments)) for run in runs])
        for number, (run, reason) in enumerate(zip(runs, reasons, strict=True), 1):
            if reason:
                failed[run] = f"{reason}  ({run.log})"
                console.print(f"failed: evaluation of {run.label}: {failed[run]}")
            if number % 10 == 0 or number == len(runs):
                console.print(f"evaluated {number} of {len(runs)} runs")
    return failed


def _evaluate(job: tuple[str, str, tuple[str, ...]]) -> str:
    """In a process of the pool: what went wrong, or nothing."""
    import torch

    from ssa.command_line.settings import parse
    from ssa.evaluation import evaluate as evaluation
    from ssa.evaluation.settings import EvaluateSettings

    run, log, arguments = job
    torch.set_num_threads(1)
    with Path(log).open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        evaluation.evaluate(parse(EvaluateSettings, [f"run={run}", *arguments]))
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return str(error)
    except Exception as error:
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
    return ""
