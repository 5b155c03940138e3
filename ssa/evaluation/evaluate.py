"""Run evaluation tasks on one model; save, print and log their outcomes."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from ssa.errors import NotFinite, UserError, first_line
from ssa.evaluation import catalog
from ssa.evaluation.results import Result, checked, file_name, find, identity_of, newest, result_of, save
from ssa.evaluation.scoring.context import EvaluationContext, Journal
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Task
from ssa.progress import ProgressBar, counted
from ssa.record.checksums import add_evaluations, evaluations
from ssa.record.wandb_mirror import mirror_evaluation

_MODEL_SETTINGS = {"run", "init_from", "tokenizer", "context", "device", "precision", "output_dir"}


def evaluate(settings: EvaluateSettings) -> dict[str, Result]:
    """Run all tasks without a saved outcome, print a table of all outcomes, log them to the run's W&B, return them.

    Raises:
        UserError: the model is unavailable; or some tasks failed, after the others have finished.
    """
    names = catalog.names(settings.tasks)
    evaluated = EvaluatedModel(**settings.model_dump(include=_MODEL_SETTINGS))
    evaluation = _Evaluation(settings, evaluated)
    evaluation.console.print(evaluated.described)
    _ = evaluated.tokenizer, evaluated.weights_hash  # their errors would fail every task
    try:
        evaluation.run(names)
    finally:
        evaluation.report()
    if evaluation.failures:
        failed = [name for name in names if name in evaluation.failures]
        if len(names) == 1:
            raise UserError(evaluation.failures[names[0]])
        raise UserError(f"tasks: {len(failed)} of {len(names)} failed: {', '.join(failed)}")
    return evaluation.results


class _Evaluation:
    def __init__(self, settings: EvaluateSettings, evaluated: EvaluatedModel) -> None:
        self.settings, self.evaluated, self.folder = settings, evaluated, evaluated.folder / "evaluation"
        self.console = Console(highlight=False, soft_wrap=True, markup=False)
        self.results: dict[str, Result] = {}
        self.failures: dict[str, str] = {}  # the message of each failed task
        self._is_new = False

    def run(self, names: Sequence[str]) -> None:
        """Check all tasks, then run those that passed; a failure does not stop the others."""
        tasks: list[Task] = []
        for name in names:
            with self._failures_reported(name, alone=len(names) == 1):
                tasks.append(catalog.task(name, self.settings, self.evaluated))
        for task in tasks:
            since, before = time.time(), evaluations(self.evaluated.folder)
            with self._failures_reported(task.name, alone=len(names) == 1):
                try:
                    self._find_or_run(task)
                finally:
                    add_evaluations(self.evaluated.folder, since, before)

    @contextmanager
    def _failures_reported(self, name: str, alone: bool) -> Iterator[None]:
        """Print the failure of a task at once, unless it is the only task, whose failure ends the program."""
        try:
            yield
            return
        except NotFinite as error:
            message = f"tasks={name}: {error}"
        except UserError as error:
            message = str(error)
        except OSError as error:  # disk full, not writable
            message = f"tasks={name}: {error}"
        except Exception as error:  # a bug here or in lm-evaluation-harness
            traceback.print_exc()
            message = f"tasks={name}: {type(error).__name__}: {first_line(error)}"
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"rerun the command to resume {name}") from None
        self.failures[name] = message
        if not alone:
            self.console.print(f"error: {message}", style="red")

    def _find_or_run(self, task: Task) -> None:
        identity = identity_of(task.settings, self.evaluated)
        again = self.settings.rerun or Journal.has_unfinished_files(self.folder, task.name)
        saved = None if again else find(self.folder, task.name, identity, newest=task.has_files)
        if saved is not None:
            self.console.print(f"{task.name}: finished before (rerun=true runs it again)")
            self.results[task.name] = checked(saved)
            return
        _ = self.evaluated.model  # loading is not part of the task's time
        began = time.perf_counter()
        with (
            Journal.exclusive(self.folder, file_name(task.name), identity, of_all=task.has_files) as journal,
            ProgressBar(task.name, 0, unit="tokens", transient=True) as progress,
        ):
            outcome = task.run(EvaluationContext(self.evaluated, self.folder, journal, progress, self.settings.rows))
            result = checked(result_of(task.name, identity, self.evaluated, outcome, time.perf_counter() - began))
            save(self.folder, result)
            journal.remove()
        self.results[task.name] = result
        self._is_new = True

    def report(self) -> None:
        """Print a table with footnotes, and log all outcomes of these weights to W&B."""
        if not self.results:
            return
        self.console.print(_table(self.results))
        for name, result in self.results.items():
            self.console.print(_footnote(name, result))
        if self.evaluated.config is not None and self._is_new:
            metrics = {
                f"eval/{result['task']}/{metric}": found["value"]
                for result in newest(self.folder, self.evaluated)
                for metric, found in result["metrics"].items()
            }
            mirror_evaluation(self.evaluated.config, self.evaluated.folder, metrics)
        self.console.print(str(self.folder.resolve()))


def _table(results: Mapping[str, Result]) -> Table:
    metric_column = Column("metric", overflow="fold")
    table = Table("task", metric_column, "value", "error", "n", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, result in results.items():
        first = name, f"{result['n']:,}"
        for metric, found in result["metrics"].items():
            table.add_row(first[0], metric, f"{found['value']:.4g}", _error(found), first[1])
            first = "", ""
        for metric in ("word_perplexity", "bits_per_byte") if result.get("details", {}).get("loss_of_text") else ():
            table.add_row("", metric, "–", "", "")
    return table


def _error(metric: Mapping[str, Any]) -> str:
    if "low" in metric:
        return f"{metric['low']:.3g} to {metric['high']:.3g}"
    return f"± {metric['stderr']:.2g}" if "stderr" in metric else ""


def _footnote(name: str, result: Result) -> str:
    hidden = ("data_hash", "text_column")
    chosen = {key: value for key, value in result["settings"].items() if value is not None and key not in hidden}
    settings = [f"{key}={value}" for key, value in chosen.items()]
    counts = [counted(number, what) for what, number in result["counts"].items()]
    lost = f"\n{name}: {loss} (–)" if (loss := result.get("details", {}).get("loss_of_text")) else ""
    return f"{name}: {', '.join([*counts, *settings])}; {result['seconds']:,.0f} s{lost}"
