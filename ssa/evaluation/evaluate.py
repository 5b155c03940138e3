"""Tasks on one model, one after the other: what is finished is kept, what fails is said, and the rest goes on."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from ssa.errors import UserError, first_line
from ssa.evaluation import catalog
from ssa.evaluation.results import Result, file_name, find, identity_of, keep, newest, result_of
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.journal import Journal
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Task
from ssa.progress import ProgressBar
from ssa.record.checksums import reseal

_MODEL_SETTINGS = {"run", "init_from", "tokenizer", "context", "device", "precision", "output_dir"}


def evaluate(settings: EvaluateSettings) -> dict[str, Result]:
    """Runs the tasks that have not finished before, prints a table of all, and shows it to the run's W&B.

    Returns:
        The outcome of each task, as in its file.

    Raises:
        UserError: the model cannot be had; or, when all others are done, tasks failed.
    """
    console = Console(highlight=False, soft_wrap=True, markup=False)
    names = catalog.names(settings.tasks)
    evaluated = EvaluatedModel(**settings.model_dump(include=_MODEL_SETTINGS))
    console.print(evaluated.described)
    _ = evaluated.tokenizer, evaluated.weights_hash  # what is wrong with them is wrong for every task
    tasks: list[Task] = []
    failures: set[str] = set()

    def fail(name: str, what: object) -> None:
        failures.add(name)
        console.print(f"error: {what}", style="red")

    for name in names:  # all of them before the first is run
        try:
            tasks.append(catalog.task(name, settings, evaluated))
        except UserError as error:
            fail(name, error)
    evaluation = _Evaluation(settings, evaluated, evaluated.folder / "evaluation", console)
    try:
        for task in tasks:
            try:
                evaluation.add(task)
            except UserError as error:
                fail(task.name, error)
            except OSError as error:  # no room, not writable
                fail(task.name, f"tasks={task.name}: {error}")
            except Exception as error:  # ours or the harness's: the other tasks still run
                traceback.print_exc()
                fail(task.name, f"tasks={task.name}: {type(error).__name__}: {first_line(error)}")
            except KeyboardInterrupt:
                console.print(f"{task.name}: interrupted; the same command goes on from here")
                raise
    finally:
        evaluation.report()
    if failures:
        failed = [name for name in names if name in failures]
        raise UserError(f"tasks: {len(failed)} of {len(names)} failed: {', '.join(failed)}")
    return evaluation.results


class _Evaluation:
    """What has been found so far."""

    def __init__(self, settings: EvaluateSettings, evaluated: EvaluatedModel, folder: Path, console: Console) -> None:
        self.settings, self.evaluated, self.folder, self.console = settings, evaluated, folder, console
        self.results: dict[str, Result] = {}
        self._is_new = False

    def add(self, task: Task) -> None:
        """Its outcome, kept or found now.

        Raises:
            UserError: it cannot be done.
        """
        since = time.time()
        try:
            self._find_or_run(task)
        finally:
            reseal(self.evaluated.folder, since)

    def _find_or_run(self, task: Task) -> None:
        identity = identity_of(task.settings, self.evaluated)
        kept = None if self.settings.rerun else find(self.folder, task.name, identity, newest=task.has_files)
        if kept is not None:
            self.console.print(f"{task.name}: finished before (rerun=true runs it again)")
            self.results[task.name] = kept
            return
        _ = self.evaluated.model  # not part of the task's time
        began = time.perf_counter()
        with (
            Journal.exclusive(self.folder, file_name(task.name), identity) as journal,
            ProgressBar(task.name, 0, unit="tokens", transient=True) as progress,
        ):
            outcome = task.run(EvaluationContext(self.evaluated, self.folder, journal, progress, self.settings.rows))
            result = result_of(task.name, identity, self.evaluated, outcome, time.perf_counter() - began)
            keep(self.folder, result)
            journal.remove()
        self.results[task.name] = result
        self._is_new = True

    def report(self) -> None:
        """A table, what the numbers are of, and where they are; to W&B, all that there is of these weights."""
        if not self.results:
            return
        self.console.print(_table(self.results))
        for name, result in self.results.items():
            self.console.print(_footnote(name, result))
        if self.evaluated.config is not None and self._is_new:
            from ssa.record.wandb_mirror import mirror_evaluation

            found = _by_name(newest(self.folder, self.evaluated))
            mirror_evaluation(self.evaluated.config, self.evaluated.folder, found)
        self.console.print(str(self.folder.resolve()))


def _table(results: Mapping[str, Result]) -> Table:
    table = Table(
        "task", Column("metric", overflow="fold"), "value", "error", "n", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name, result in results.items():
        first = name, f"{result['n']:,}"
        for metric, found in result["metrics"].items():
            table.add_row(first[0], metric, f"{found['value']:.4g}", _error(found), first[1])
            first = "", ""
    return table


def _error(metric: Mapping[str, Any]) -> str:
    if "low" in metric:
        return f"{metric['low']:.3g} to {metric['high']:.3g}"
    return f"± {metric['stderr']:.2g}" if "stderr" in metric else ""


def _footnote(name: str, result: Result) -> str:
    hidden = ("data_hash", "text_column")
    settings = [
        f"{key}={value}" for key, value in result["settings"].items() if value is not None and key not in hidden
    ]
    counts = [f"{number:,} {what}" for what, number in result["counts"].items()]
    return f"{name}: {', '.join([*counts, *settings])}; {result['seconds']:,.0f} s"


def _by_name(results: Iterable[Result]) -> dict[str, float]:
    return {
        f"eval/{result['task']}/{metric}": found["value"]
        for result in results
        for metric, found in result["metrics"].items()
    }
