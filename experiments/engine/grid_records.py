"""Committed records of a grid: a run that has one counts as finished.

Runs of one seed in a group are compared with each other, so they must come from one machine and, where they are
fine-tuned, from one start.  Records count if all runs of the group and seed have them so; if some are missing, which
are then trained here, only the records that this kind of machine made count, and the other runs are trained again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments.engine.design import LR, MULTIPLIER
from experiments.engine.experiment import Experiment, all_experiments
from experiments.engine.grid import Grid, GridSettings
from experiments.engine.grid_runs import GridCell, Planned, overrides_of, reported, start_cell
from ssa.command_line.settings import parse
from ssa.errors import UserError
from ssa.evaluation.settings import EvaluateSettings
from ssa.launch.cluster import PROCESSES
from ssa.launch.run import Run
from ssa.record import records
from ssa.record.machine import Machine
from ssa.record.records import Record

FILE = "records.parquet"
_WITHOUT_EFFECT = {"tasks", "batch_size", "device", "output_dir", "rerun"}  # settings of evaluate.py
_CHOSEN = ("init_from", LR, MULTIPLIER)  # what a run takes from those that it depends on


@dataclass(frozen=True)
class GridRecords:
    """Records of the runs of a grid; ``own``: those behind its own table, in ``path``."""

    grid: Grid
    settings: GridSettings
    path: Path
    own: Sequence[Record]
    others: Sequence[Record] = ()

    @classmethod
    def of(cls, experiment: Experiment, grid: Grid, settings: GridSettings) -> GridRecords:
        """Those of the experiment, then those of others at the scale; none with ``rerun`` or ``source``.

        Raises:
            UserError: a file is damaged.
        """
        path = committed(experiment, settings.scale)
        if settings.rerun or settings.source is not None:
            return cls(grid, settings, path, ())
        paths = (committed(other, settings.scale) for other in all_experiments() if other.name != experiment.name)
        others = [record for other in paths for record in records.read(other)]
        return cls(grid, settings, path, records.read(path), others)

    def taken(self, planned: Planned) -> dict[GridCell, Record]:
        """The records that count, by cell; those of pretraining and searches are for the tables alone."""
        blocks: dict[tuple[str, int], list[GridCell]] = {}
        for cell in reported(planned):
            blocks.setdefault((cell.group, cell.seed), []).append(cell)
        found = [self._of_block(cells, planned) for cells in blocks.values()]
        others = {
            cell: record
            for cell in planned
            if not cell.is_reported
            if (record := next(self._candidates(cell, planned), None))
        }
        return others | {cell: record for of_block in found for cell, record in of_block.items()}

    def missing(self, planned: Planned, taken: Mapping[GridCell, Record]) -> list[Run]:
        """Runs of the table without a record that counts, and those that they depend on."""
        groups = {cell.group for cell in reported(planned) if cell not in taken}
        starts = {start_cell(group) for group in self.grid.groups if group.name in groups and group.start}
        wanted = (
            cell
            for cell in planned
            if cell in starts or (cell.group in groups and not (cell.is_reported and cell in taken))
        )
        return [run for cell in wanted if (run := planned[cell])]

    def _of_block(self, cells: Sequence[GridCell], planned: Planned) -> dict[GridCell, Record]:
        """The records that count, of the runs of one group and seed."""
        options: dict[tuple[Machine | None, str], dict[GridCell, Record]] = {}
        for cell in cells:
            for record in self._candidates(cell, planned):
                options.setdefault((Machine.of(record.run.summary), start_name(record.overrides)), {}).setdefault(
                    cell, record
                )
        whole = next((option for option in options.values() if len(option) == len(cells)), None)
        if whole is not None or not options:
            return whole or {}
        if self.settings.render:
            return {cell: record for option in reversed(options.values()) for cell, record in option.items()}
        here = self._here(planned[cell] for cell in cells)
        starts = {cell: start_name(run.overrides) for cell in cells if (run := planned[cell])}
        for (machine, start), option in options.items():
            if here is not None and machine == here:
                return {cell: record for cell, record in option.items() if starts.get(cell) == start}
        return {}

    def _candidates(self, cell: GridCell, planned: Planned) -> Iterator[Record]:
        """Records of the run of a cell; what it takes from other runs, which may not be here, is not compared."""
        run = planned[cell]
        if run is not None:
            yield from self._of_id(run)
        else:
            declared = self._portable(overrides_of(self.grid, self.settings, cell, rates=cell.rates))
            for record in self._by_overrides.get(_without_chosen(declared), ()):
                if cell.rates is None or set(cell.rates.overrides) <= set(record.overrides):
                    yield record

    def _of_id(self, run: Run | None) -> Iterator[Record]:
        if run is not None and not run.refusal:
            yield from self._by_id.get(run.config.run_id, ())

    @cached_property
    def _evaluated(self) -> list[Record]:
        """All records with the evaluations that are asked for."""
        return [record for record in (*self.own, *self.others) if _is_evaluated(record, self.settings)]

    @cached_property
    def _by_id(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self._evaluated:
            found.setdefault(record.run.run_id, []).append(record)
        return found

    @cached_property
    def _by_overrides(self) -> dict[tuple[str, ...], list[Record]]:
        found: dict[tuple[str, ...], list[Record]] = {}
        for record in self._evaluated:
            found.setdefault(_without_chosen(record.overrides), []).append(record)
        return found

    def _here(self, runs: Iterable[Run | None]) -> Machine | None:
        """The kind of machine that would train these runs; None: not known, as on a cluster."""
        run = next((run for run in runs if run and not run.refusal), None)
        if run is None or self.settings.launcher != PROCESSES:
            return None
        with suppress(UserError):  # no such device: training will say so
            return Machine.here(run.config.trainer, threads=1)  # as `Run.start` has it
        return None

    def write(self, path: Path, planned: Planned, taken: Mapping[GridCell, Record]) -> None:
        """Write the records that count, and those of all other runs that have finished here undamaged."""
        made = list(taken.values())
        for run in (run for cell, run in planned.items() if run and cell not in taken):
            with suppress(UserError):  # damaged: the table names it
                if run.is_finished():
                    made.append(self.record(run))
        if made:
            records.write(path, made, self.path)

    def record(self, run: Run) -> Record:
        """The record of a finished run folder.

        Raises:
            UserError: it is damaged.
        """
        known = next((record for record in self.own if record.run.run_id == run.config.run_id), None)
        return records.record_of(run.folder, self._portable(run.overrides), self.settings.evaluate, known)

    def _portable(self, overrides: Iterable[str]) -> list[str]:
        """Overrides that are the same for every output folder."""
        kept = (text for text in overrides if not text.startswith(("output_dir=", "logger=")))
        return [text.replace(f"={self.settings.output_dir}/", "=outputs/") for text in kept]


def committed(experiment: Experiment, scale: str) -> Path:
    """The file of the records behind an experiment's table."""
    return experiment.folder / "results" / f"{scale}_{FILE}"


def start_name(overrides: Iterable[str]) -> str:
    """The name of the model that a run fine-tunes, which has a hash of its weights; empty if there is none."""
    return next((Path(text).name for text in overrides if text.startswith("init_from=")), "")


def _without_chosen(overrides: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in overrides if text.partition("=")[0] not in _CHOSEN)


def _is_evaluated(record: Record, settings: GridSettings) -> bool:
    """Whether it has the outcomes of the tasks that are asked for, with the same settings."""
    if not settings.evaluate:
        return True
    try:
        recorded = parse(EvaluateSettings, ["run=RUN", *record.evaluate])
    except UserError:  # of another version
        return False
    same = recorded.model_dump(exclude=_WITHOUT_EFFECT) == settings.evaluation.model_dump(exclude=_WITHOUT_EFFECT)
    return same and set(settings.tasks()) <= {evaluation["task"] for evaluation in record.evaluations}
