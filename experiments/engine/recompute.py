"""Recompute a recorded run from nothing, and compare it with its record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from rich.console import Console

from experiments.engine.evaluations import evaluate
from experiments.engine.experiment import Experiment
from experiments.engine.grid import GridSettings, declared
from experiments.engine.grid_records import GridRecords
from experiments.engine.grid_runs import GridCell, Planned, has_diverged, start_cell
from experiments.engine.origin import start_in
from ssa.config import short_id
from ssa.config_errors import closest
from ssa.errors import UserError
from ssa.launch.pool import run_all
from ssa.launch.run import Run
from ssa.record.machine import Machine
from ssa.record.records import Record

TOLERANCE = 0.02  # nats: of validation and test losses, on another kind of machine
_OF_ONE_OCCASION = {"tokens_per_second", "train_seconds", "wall_seconds", "peak_memory_bytes", "commit"}
_NAMES = {"run_id", "size", "variant", "init_from"}  # of the run and of its start, whose content is compared
_SHOWN = 5  # differences


class Difference(NamedTuple):
    """A value that differs."""

    name: str
    recorded: Any
    now: Any

    @property
    def size(self) -> float:
        """Of numbers; infinite for anything else."""
        numbers = isinstance(self.recorded, int | float) and isinstance(self.now, int | float)
        size = abs(self.now - self.recorded) if numbers else math.inf
        return math.inf if math.isnan(size) else size

    def __str__(self) -> str:
        change = f" ({self.now - self.recorded:+.3g})" if math.isfinite(self.size) else ""
        return f"{self.name}: {self.recorded} recorded, {self.now} now{change}"


def recompute(experiment: Experiment, settings: GridSettings, console: Console) -> None:
    """Train ``settings.recompute`` in ``<output_dir>/recomputed`` and compare it with its record.

    On the kind of machine of the record all values must be equal bit for bit; elsewhere losses must be within
    `TOLERANCE`.  Values of one occasion, such as seconds, are not compared.

    Raises:
        UserError: there is no such record, the run failed, or it differs.
    """
    grid = declared(experiment, settings)
    recorded = GridRecords.of(experiment, grid, settings)
    record = next((one for one in recorded.own if one.run.run_id == settings.recompute), None)
    if record is None:
        guess = closest(str(settings.recompute), [one.run.run_id for one in recorded.own])
        raise UserError(f"recompute={settings.recompute}: no such record in {recorded.path}{guess}")
    run = _planned(record, recorded, settings, console)
    own = tuple(text for text in run.overrides if not text.startswith("output_dir="))
    again = Run((*own, f"output_dir={settings.output_dir}/recomputed"), run.group, run.setting, run.seed)
    failed = run_all([again], jobs=1, console=console, rerun=True)
    if record.run.status == "failed" and has_diverged(again.error):  # as recorded
        failed = {}
    if record.evaluate and not failed:
        failed = evaluate([again], record.evaluate, jobs=1, console=console)
    if failed:
        raise UserError(f"recompute={settings.recompute}: {failed[again]}")
    compare(record, recorded.record(again, record.evaluate), console)


def compare(record: Record, again: Record, console: Console) -> None:
    """Print the differences of two records of one run, in the values that the first has.

    Raises:
        UserError: they differ, by more than `TOLERANCE` where the machines differ.
    """
    name, before, now = record.run.run_id, values_of(record), values_of(again)
    first, second = record.machine, again.machine
    differences = [
        Difference(key, before.get(key), now.get(key)) for key in before if not _equal(before[key], now.get(key))
    ]
    largest = sorted(differences, key=lambda one: -one.size)
    losses = [one for one in largest if one.name.partition(" at ")[0].endswith(("val/loss", "test/loss"))]
    machine = str(second) if first == second else f"{first} recorded, {second} now"
    console.print(f"{name}: {len(before) - len(differences)} of {len(before)} values equal bit for bit ({machine})")
    for one in dict.fromkeys((*losses[:_SHOWN], *largest[:_SHOWN])):
        console.print(f"  {one}", markup=False)
    if first == second and differences:
        raise UserError(f"{name}: {len(differences)} values differ from its record, on the same kind of machine")
    if losses and losses[0].size > TOLERANCE:
        raise UserError(f"{name}: differs from its record by more than {TOLERANCE} nats: {losses[0]}")


def values_of(record: Record) -> dict[str, Any]:
    """What a run determines: the summary, the curve by step, the evaluations, and the hash of the weights."""
    skipped = {*_OF_ONE_OCCASION, *_NAMES, *Machine._fields}
    values = {name: value for name, value in record.run.summary.items() if name not in skipped}
    values |= {f"{name} at step {row['step']}": value for row in record.curve for name, value in row.items()}
    return {**values, **record.run.evaluations, "weights": record.weights}


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other or (one != one and other != other))  # NaN


def _planned(record: Record, recorded: GridRecords, settings: GridSettings, console: Console) -> Run:
    """The run of a record; where it fine-tunes a model that is not here, that one is trained first.

    Raises:
        UserError: the grid has no such run, or its start cannot be trained or is another.
    """
    name, grid = record.run.run_id, recorded.grid
    wherever = replace(recorded, settings=settings.model_copy(update={"render": True}))  # from any machine
    planned, taken = wherever.plan()
    cell = next((cell for cell in planned if _short_id(cell, planned, taken) == short_id(name)), None)
    if cell is None:
        raise UserError(f"recompute={name}: not a run of this grid with these settings")
    run = planned[cell]
    if run is None:  # without its start
        (group,) = (group for group in grid.groups if group.name == cell.group)
        base = planned[start_cell(group)]
        assert base is not None  # the records of what it starts are found through it
        console.print(f"{name} fine-tunes {base.label}, which is trained first")
        failed = run_all([base], jobs=1, console=console)
        if failed:
            raise UserError(f"recompute={name}: {failed[base]}")
        run = wherever.plan()[0][cell]
    assert run is not None
    if start_in(run.config.plain()) != start_in(record.run.config):
        if record.machine == Machine.here(run.config.trainer, threads=1):
            raise UserError(f"recompute={name}: the model that it starts from came out with other weights here")
        console.print("the model that it starts from came out with other weights on this kind of machine")
    return run


def _short_id(cell: GridCell, planned: Planned, taken: Mapping[GridCell, Record]) -> str | None:
    if cell in taken:
        return short_id(taken[cell].run.run_id)
    run = planned[cell]
    return run.config.short_id if run is not None and not run.refusal else None
