"""Training, evaluation and results of a grid, whose settings and declaration are in `experiments.engine.grid`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.engine.context import ExperimentContext
from experiments.engine.design import RESERVED_SEED
from experiments.engine.evaluations import evaluate
from experiments.engine.grid import Grid, GridSettings, declared
from experiments.engine.grid_runs import reported
from ssa.config_errors import closest
from ssa.errors import UserError
from ssa.launch.pool import failures, refused, run_all
from ssa.launch.run import Run

if TYPE_CHECKING:
    import pandas as pd


def run(settings: GridSettings, context: ExperimentContext) -> None:
    """Trains and evaluates the missing runs, then writes the results.

    Raises:
        UserError: invalid declaration or settings; a run failed and ``fail_fast`` is set; or W&B does not answer.
    """
    from experiments.engine.grid_records import FILE, GridRecords
    from experiments.engine.grid_results import Results
    from experiments.engine.grid_tables import write
    from experiments.engine.speed_ups import KEY, add_speed_ups
    from ssa.record.runs import load

    grid = declared(context.experiment, settings)
    records = GridRecords.of(context.experiment, grid, settings)
    failed: dict[Run, str] = {}
    unevaluated: dict[Run, str] = {}
    planned, taken = records.plan()
    first = records.missing(planned, taken)
    mistakes = refused(first)
    if settings.source is None and not settings.render:
        if mistakes and len(mistakes) == len(first):  # such as a mistake in train=
            raise UserError(next(iter(mistakes.values())))
        if taken:
            context.console.print(f"{len(taken)} of {len(planned)} runs have a record, which counts as finished")
        trained: list[Run] = []
        while new := [run for run in records.missing(planned, taken) if run not in trained]:
            # A group ends, evaluated, before the next one begins, and a seed before the next: what is interrupted has
            # whole pairs.
            stage = sorted((run for run in new if run.group == new[0].group), key=_searches_first)
            searches = [run for run in stage if run.seed == RESERVED_SEED]
            stage = searches if settings.rerun and searches else stage  # the others have the rates that these choose
            failed |= _train(stage, settings, context)
            trained += stage
            planned, taken = records.plan()
            of_table = (run for cell, run in reported(planned).items() if cell not in taken)
            unevaluated |= _evaluate([run for run in of_table if run and run in stage], settings, context)
    else:
        failed |= {} if settings.render else mistakes  # what cannot be trained now is missing from the records, no more
        context.add_runs(first if settings.render else [], failed)
    found = [record.run for record in taken.values()]
    context.add_recorded(found)
    frame = load(Path(settings.output_dir) / "experiments", settings.source, recorded=found)
    if any(metric.key == KEY for metric in grid.metrics):
        add_speed_ups(frame, grid, planned, taken)
    check_keys(grid, frame)
    if settings.source is None:
        records.write(context.path(FILE), planned, taken)
    write(Results(context.experiment, grid, settings, planned, failed, unevaluated, frame, taken), context)


def _searches_first(run: Run) -> tuple[bool, int]:
    return run.seed != RESERVED_SEED, run.seed or 0


def _train(wanted: Sequence[Run], settings: GridSettings, context: ExperimentContext) -> dict[Run, str]:
    """Trains what is not finished; returns the failed runs, each with the reason."""
    failed = run_all(
        wanted,
        jobs=settings.jobs,
        console=context.console,
        rerun=settings.rerun,
        fail_fast=settings.fail_fast,
        launcher=settings.launcher,
        launcher_overrides=settings.launcher_overrides,
        output_dir=Path(settings.output_dir) / "experiments",
    )
    return _recorded(wanted, failed, settings, context)


def _recorded(
    wanted: Sequence[Run], failed: dict[Run, str], settings: GridSettings, context: ExperimentContext
) -> dict[Run, str]:
    context.add_runs(wanted, failed)
    if failed and settings.fail_fast:
        raise UserError(f"fail_fast=true: stopped; {failures(context.failed)}")
    return failed


def check_keys(grid: Grid, frame: pd.DataFrame) -> None:
    """Checks that finished runs have the metrics that training measures.

    Raises:
        UserError: a metric is in none of them.
    """
    for metric in grid.metrics:
        if metric.task is not None or metric.fine_tuned:  # it may be that no such run has finished
            continue
        if (frame["status"] == "finished").any() and metric.key not in frame.columns:
            known = [name for name in frame.columns if not name.startswith("config.")]
            raise UserError(f"metric {metric.name}: key={metric.key}: no run has it{closest(metric.key, known)}")


def _evaluate(trained: Sequence[Run], settings: GridSettings, context: ExperimentContext) -> dict[Run, str]:
    """Runs evaluate.py on each finished run; finished tasks are skipped."""
    if not settings.evaluate:
        return {}
    finished = [run for run in trained if run.is_finished()]
    failed = evaluate(finished, settings.evaluate, settings.jobs, context.console)
    return _recorded(finished, failed, settings, context)
