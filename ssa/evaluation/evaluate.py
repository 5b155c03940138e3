"""Tasks on one model, one after the other: what is finished is kept, what fails is said, and the rest goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ssa.errors import UserError
from ssa.evaluation import catalogue
from ssa.evaluation.journal import Journal
from ssa.evaluation.progress import TaskProgress
from ssa.evaluation.results import Result, find, identity_of, keep, result_of
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.subject import Subject
from ssa.evaluation.task import Task
from ssa.evaluation.work import Work


def evaluate(settings: EvaluateSettings) -> dict[str, Result]:
    """Runs the tasks that have not finished before, prints a table of all, and shows it to the run's W&B.

    Returns:
        The outcome of each task, as in its file.

    Raises:
        UserError: the model cannot be had; or, when all others are done, tasks failed.
    """
    subject = Subject(
        **settings.model_dump(include={"run", "init_from", "tokenizer", "context", "device", "precision", "output_dir"})
    )
    console = Console(highlight=False, soft_wrap=True)
    folder = subject.folder / "evaluation"
    console.print(f"{subject.name}: context {subject.context}, {subject.device.type}, {subject.precision}")
    _ = subject.tokenizer, subject.weights_hash  # what is wrong with them is wrong for every task
    results: dict[str, Result] = {}
    new: dict[str, Result] = {}
    failed: list[str] = []
    for name in catalogue.names(settings.tasks):
        try:
            task = catalogue.task(name, settings, subject)
            kept = None if settings.rerun else find(folder, name, identity_of(task.settings, subject))
            if kept is not None:
                console.print(f"{name}: finished before (rerun=true runs it again)")
            else:
                new[name] = _run(task, settings, subject, folder)
            results[name] = kept or new[name]
        except UserError as error:
            failed.append(name)
            console.print(f"error: {error}", style="red", markup=False)
        except KeyboardInterrupt:
            console.print(f"{name}: interrupted; the same command goes on from here")
            raise
    if results:
        console.print(_table(results))
        for name, result in results.items():
            console.print(_footnote(name, result))
        if subject.config is not None and new:
            from ssa.record.wandb_mirror import mirror_evaluation

            mirror_evaluation(subject.config, subject.folder, _flat(new))
        console.print(str(folder.resolve()))
    if failed:
        raise UserError(f"tasks: {len(failed)} of {len(failed) + len(results)} failed: {', '.join(failed)}")
    return results


def _run(task: Task, settings: EvaluateSettings, subject: Subject, folder: Path) -> Result:
    _ = subject.model  # not part of the task's time
    journal = Journal(folder / f".{task.name}.journal", identity_of(task.settings, subject))
    began = time.perf_counter()
    with TaskProgress(task.name) as progress:
        outcome = task.run(Work(subject, folder, journal, progress, settings.rows))
    result = result_of(task.name, task.settings, subject, outcome, time.perf_counter() - began)
    keep(folder, result)
    journal.remove()
    return result


def _table(results: Mapping[str, Result]) -> Table:
    table = Table("task", "metric", "value", "error", "n", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, result in results.items():
        for number, (metric, found) in enumerate(result["metrics"].items()):
            first = number == 0
            table.add_row(
                name if first else "",
                metric,
                f"{found['value']:.4g}",
                _error(found),
                f"{result['n']:,}" if first else "",
            )
    return table


def _error(metric: Mapping[str, Any]) -> str:
    if "low" in metric:
        return f"{metric['low']:.3g} to {metric['high']:.3g}"
    return f"± {metric['stderr']:.2g}" if "stderr" in metric else ""


def _footnote(name: str, result: Result) -> str:
    settings = [f"{key}={value}" for key, value in result["settings"].items() if value is not None]
    counts = [f"{number:,} {what}" for what, number in result["counts"].items()]
    return f"{name}: {', '.join([*counts, *settings])}; {result['seconds']:,.0f} s"


def _flat(results: Mapping[str, Result]) -> dict[str, float]:
    return {
        f"eval/{name}/{metric}": found["value"]
        for name, result in results.items()
        for metric, found in result["metrics"].items()
    }
