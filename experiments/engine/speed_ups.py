"""Speed-ups in a grid: tokens that the first row needs over those that a run needs, to the lowest loss both reach."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from experiments.engine.grid import Grid
from experiments.engine.grid_runs import GridCell, Planned, Recorded, reported
from ssa.errors import UserError
from ssa.record.run_files import read_rows
from ssa.report.convergence import Curve, speed_up

if TYPE_CHECKING:
    import pandas as pd

KEY = "speed_up"  # of a metric


def add_speed_ups(frame: pd.DataFrame, grid: Grid, planned: Planned, recorded: Recorded) -> None:
    """Adds the column ``speed_up`` to a table of `ssa.record.runs.load`: each run against the first row's run of equal
    group and seed (`ssa.report.convergence.speed_up`); NaN without that one.
    """
    curves: dict[GridCell, tuple[str, Curve]] = {}
    for cell, run in reported(planned).items():
        with suppress(UserError):  # damaged: the table names it
            if cell in recorded:
                curves[cell] = recorded[cell].run.run_id, Curve.of(recorded[cell].curve)
            elif run is not None and not run.refusal and run.is_finished():
                curves[cell] = run.folder.name, Curve.of(read_rows(run.folder))
    frame[KEY] = math.nan
    for cell, (run_id, curve) in curves.items():
        first = curves.get(cell._replace(row=grid.rows[0].name))
        if first is not None and run_id in frame.index:
            frame.loc[run_id, KEY] = speed_up(first[1], curve)
