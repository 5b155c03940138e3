"""Evaluations of finished runs, several at once."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ssa.command_line.output import log_output
from ssa.command_line.settings import parse
from ssa.errors import UserError
from ssa.files import locked
from ssa.launch.run import Run
from ssa.processes import WorkerKilled, call_each, redirect_output
from ssa.redaction import redact


def evaluate(runs: Sequence[Run], arguments: Sequence[str], jobs: int, console: Console) -> dict[Run, str]:
    """Runs ``python evaluate.py run=RUN ARGUMENTS`` for each finished run, which skips finished tasks.

    Returns:
        The runs whose evaluation failed, each with the reason in one line; the output is in the run's log.
    """
    reasons: dict[Run, str] = {}

    def note(run: Run, reason: str) -> None:
        reasons[run] = f"evaluation: {reason}  ({run.log})" if reason else ""
        if reason:
            console.print(f"failed: {run.label}: {reasons[run]}", markup=False)
        if len(reasons) % 10 == 0 or len(reasons) == len(runs):
            console.print(f"evaluated {len(reasons)} of {len(runs)} runs")

    calls = [(run.folder.resolve(), run.log, tuple(arguments)) for run in runs]
    try:
        for number, reason in call_each(_evaluate, calls, jobs=jobs, preload="ssa.training.preloaded", isolated=True):
            note(runs[number], reason)
    except WorkerKilled as error:
        for run in runs:
            if run not in reasons:
                note(run, str(error))
    return {run: reason for run, reason in reasons.items() if reason}


def _evaluate(run: Path, log: Path, arguments: tuple[str, ...]) -> str:
    """In a worker process: the reason of a failure, or nothing."""
    import torch

    from ssa.evaluation import evaluate as evaluation
    from ssa.evaluation.settings import EvaluateSettings

    torch.set_num_threads(1)
    began = redirect_output(log)
    try:
        with (
            log_output(),
            locked(run.with_name(f".{run.name}.evaluation.lock")),
        ):  # then what another launcher evaluated is kept
            evaluation.evaluate(parse(EvaluateSettings, [f"run={run}", *arguments]))
    except UserError as error:
        sys.stdout.flush()
        printed = log.read_bytes()[began:].decode(errors="replace").splitlines()
        print("error:", redact(str(error)), file=sys.stderr)
        return "; ".join(line.removeprefix("error: ") for line in printed if line.startswith("error: ")) or str(error)
    except Exception as error:
        print(redact(traceback.format_exc()), file=sys.stderr)
        return f"{type(error).__name__}: {error}"
    finally:
        sys.stdout.flush()
    return ""
