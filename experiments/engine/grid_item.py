"""What stands in for the ``item.py`` of a grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.engine.grid import Grid, Settings, check_train, declared, runs
from ssa.config_errors import closest
from ssa.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from experiments.engine.study import Study
    from ssa.launch.run import Run

__all__ = ["Settings", "run"]


def run(settings: Settings, study: Study) -> None:
    """Trains and evaluates what is missing, and writes the table.

    Raises:
        UserError: what is declared or asked for cannot be; a run failed and ``fail_fast`` is set; or W&B does not
            answer.
    """
    from experiments.engine.grid_results import Results
    from experiments.engine.grid_tables import write
    from experiments.engine.study import references
    from ssa.launch.pool import refused
    from ssa.record.runs import load

    grid = declared(study.item)
    check_train(study.item, grid, settings)
    _ = settings.tasks()  # refused before anything is trained
    failed: dict[Run, str] = {}
    unevaluated: dict[Run, str] = {}
    if settings.source is None:
        began = [run for run in runs(grid, settings).values() if run]
        mistakes = refused(began)
        if mistakes and len(mistakes) == len(began):  # as of a mistake in train=
            raise UserError(next(iter(mistakes.values())))
        failed |= _bring(began, settings, study)
        others = [run for run in runs(grid, settings).values() if run and run not in began]  # fine-tune these
        failed |= _bring(others, settings, study)
        unevaluated |= _evaluate([*began, *others], settings, study)
    else:
        failed |= refused(run for run in runs(grid, settings).values() if run)
        study.take([], failed)
    frame = load(Path(settings.output_dir) / "experiments", settings.source)
    check_keys(grid, frame)
    write(
        Results(study.item.name, grid, settings, runs(grid, settings), failed, unevaluated, frame),
        references(study.item.name),
        study,
    )


def _bring(wanted: Sequence[Run], settings: Settings, study: Study) -> dict[Run, str]:
    """Brings runs as far as they come; returns what failed, and why."""
    from ssa.launch.pool import bring

    failed = bring(
        wanted,
        jobs=settings.jobs,
        console=study.console,
        rerun=settings.rerun,
        fail_fast=settings.fail_fast,
        launcher=settings.launcher,
        launcher_overrides=settings.launcher_overrides,
        output_dir=Path(settings.output_dir) / "experiments",
    )
    return _taken(wanted, failed, settings, study)


def _taken(wanted: Sequence[Run], failed: dict[Run, str], settings: Settings, study: Study) -> dict[Run, str]:
    study.take(wanted, failed)
    if failed and settings.fail_fast:
        raise UserError(f"fail_fast=true: stopped; {study.failures}")
    return failed


def check_keys(grid: Grid, frame: pd.DataFrame) -> None:
    """Refuses a metric that training itself measures and no finished run has.

    Raises:
        UserError: naming it.
    """
    for metric in grid.metrics:
        if metric.task is None and (frame["status"] == "finished").any() and metric.key not in frame.columns:
            known = [name for name in frame.columns if not name.startswith("config.")]
            raise UserError(f"metric {metric.name}: key={metric.key}: no run has it{closest(metric.key, known)}")


def _evaluate(trained: Sequence[Run], settings: Settings, study: Study) -> dict[Run, str]:
    """Runs evaluate.py's tasks on each finished run, but for those that it has finished before."""
    from experiments.engine.evaluations import evaluate

    if not settings.evaluate:
        return {}
    finished = [run for run in trained if run.is_finished()]
    failed = evaluate(finished, settings.evaluate, settings.jobs, study.console)
    return _taken(finished, failed, settings, study)
