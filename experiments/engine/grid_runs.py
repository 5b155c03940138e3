"""The runs of a grid: pretrained models, searches of learning rates, then every row in every group with every seed.

A run is known once those that it depends on have finished: `runs` is called again after each stage of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from experiments.engine.design import RESERVED_SEED, Rates
from experiments.engine.grid import Grid, GridGroup, GridRow, GridSettings
from experiments.engine.shared_runs import exported_start
from experiments.engine.tuning import best_setting
from ssa.errors import NotFinite, TrainingDiverged, UserError
from ssa.launch.run import Run
from ssa.record.run_files import read_summary

if TYPE_CHECKING:
    from ssa.record.records import Record

PRETRAINING = "pretraining"  # in place of a group
SEARCHED = "best/val/loss"  # what a search minimizes


class GridCell(NamedTuple):
    """A run's place in a grid; ``rates``: those that a run of a search tries, None for a run of the table."""

    group: str
    row: str
    seed: int
    rates: Rates | None = None

    @property
    def is_reported(self) -> bool:
        """Whether it is a run of the table."""
        return self.group != PRETRAINING and self.rates is None


Planned = Mapping[GridCell, Run | None]
Recorded = Mapping[GridCell, "Record"]  # of runs that need not be here
_NOTHING: Recorded = {}


def runs(grid: Grid, settings: GridSettings, recorded: Recorded = _NOTHING) -> dict[GridCell, Run | None]:
    """All runs at the scale, those that others depend on first; None where what it depends on has not finished.

    ``recorded``: records of searches of learning rates, which count as finished.
    """
    scale, found = settings.scale, dict[GridCell, Run | None]()
    groups = [group for group in grid.groups if scale in group.at]
    for group in groups:
        model = grid.start_of(group)
        if model and scale in model.at:
            cell = start_cell(group)
            found[cell] = Run((*model.run(scale), *_where(settings)), PRETRAINING, model.name, RESERVED_SEED)
    for group in groups:
        start = _start(grid, group, settings, found)
        for row in grid.rows:
            found |= _of_row(grid, group, row, start, settings, recorded)
    return found


def reported(planned: Planned) -> dict[GridCell, Run | None]:
    """The runs of the table."""
    return {cell: run for cell, run in planned.items() if cell.is_reported}


def start_cell(group: GridGroup) -> GridCell:
    """The run whose weights a group fine-tunes."""
    return GridCell(PRETRAINING, str(group.start), RESERVED_SEED)


def seeds(group: GridGroup, settings: GridSettings) -> range:
    """The seeds of a group's runs."""
    return range(min(settings.seeds, group.seeds.get(settings.scale, settings.seeds)))


def overrides_of(
    grid: Grid, settings: GridSettings, cell: GridCell, start: Sequence[str] = (), rates: Rates | None = None
) -> tuple[str, ...]:
    """Overrides of train.py of a run of a row, without its output folder.

    Args:
        start: overrides that name the model to fine-tune.
        rates: the learning rates; None: the scale's own.
    """
    (group,) = (group for group in grid.groups if group.name == cell.group)
    (row,) = (row for row in grid.rows if row.name == cell.row)
    of_group = grid.overrides_of(group, settings.scale)
    of_rates = rates.overrides if rates else ()
    return (*settings.train, *of_group, *start, *row.overrides, *of_rates, f"seed={cell.seed}")


def candidates(grid: Grid, group: GridGroup, row: GridRow, settings: GridSettings) -> list[Rates]:
    """The learning rates that a row tries in a group; empty: the scale's own are used, or the row is refused."""
    search = grid.search_of(group, settings.scale)
    if search is None:
        return []
    run = Run(overrides_of(grid, settings, GridCell(group.name, row.name, 0)))
    return [] if run.refusal else search.candidates(run.config.model.temperature)


def losses(planned: Planned, group: str, row: str, recorded: Recorded = _NOTHING) -> dict[Rates, float]:
    """The validation loss of each finished run of a row's search; infinite where it diverged.

    Nats per token, with the weights of the lowest loss.
    """
    found: dict[Rates, float] = {}
    for cell, run in planned.items():
        if cell.rates and (cell.group, cell.row) == (group, row):
            loss = _loss(run, recorded.get(cell))
            if loss is not None:
                found[cell.rates] = loss
    return found


def chosen(planned: Planned, group: str, row: str, recorded: Recorded = _NOTHING) -> Rates | None:
    """The rates with the lowest loss; None before all runs of the search have ended, or if none has finished."""
    tried = [cell for cell in planned if cell.rates and (cell.group, cell.row) == (group, row)]
    found = losses(planned, group, row, recorded)
    if len(found) < len(tried) or not any(map(math.isfinite, found.values())):
        return None
    return best_setting({rates: [loss] for rates, loss in found.items()})


def has_diverged(error: str) -> bool:
    """Whether a run failed since its loss was no longer finite, which would come out the same again."""
    return error.startswith((f"{TrainingDiverged.__name__}: ", f"{NotFinite.__name__}: "))


def _of_row(
    grid: Grid,
    group: GridGroup,
    row: GridRow,
    start: Sequence[str] | None,
    settings: GridSettings,
    recorded: Recorded,
) -> dict[GridCell, Run | None]:
    found: dict[GridCell, Run | None] = {}

    def add(cell: GridCell, rates: Rates | None, known: bool = True) -> None:
        label = row.name if cell.rates is None else f"{row.name}, {rates}"
        found[cell] = None
        if start is not None and known:
            overrides = (*overrides_of(grid, settings, cell, start, rates), *_where(settings))
            found[cell] = Run(overrides, group.name, label, cell.seed)

    rates = candidates(grid, group, row, settings)
    if len(rates) > 1:
        for one in rates:
            add(GridCell(group.name, row.name, RESERVED_SEED, one), one)
    best = chosen(found, group.name, row.name, recorded) if len(rates) > 1 else next(iter(rates), None)
    for seed in seeds(group, settings):
        add(GridCell(group.name, row.name, seed), best, known=best is not None or not rates)
    return found


def _where(settings: GridSettings) -> Iterable[str]:
    return (f"output_dir={settings.output_dir}/experiments", f"logger={settings.logger}")


def _start(grid: Grid, group: GridGroup, settings: GridSettings, known: Planned) -> Sequence[str] | None:
    """Overrides that name the model to fine-tune; None where it does not exist yet."""
    model = grid.start_of(group)
    if model is None:
        return ()
    if settings.scale in model.published:
        return (f"init_from={model.published[settings.scale]}",)
    base = known[start_cell(group)]
    if base is None or base.refusal or not base.is_finished():
        return None
    try:
        return exported_start(base.folder, settings.output_dir, write=not settings.plan)
    except UserError:  # its weights are damaged or were removed
        if settings.plan or settings.render:
            return None
        raise


def _loss(run: Run | None, record: Record | None) -> float | None:
    """The loss of a run that has ended; infinite if it diverged."""
    if record is not None:
        return float(record.run.summary[SEARCHED]) if record.run.status == "finished" else math.inf
    if run is None:
        return None
    with suppress(UserError, KeyError):
        if run.is_finished():
            return float(read_summary(run.folder)[SEARCHED])
        return math.inf if has_diverged(run.error) else None
    return None
