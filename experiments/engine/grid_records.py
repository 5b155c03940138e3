"""Committed records of a grid: a run that has one counts as finished.

Runs of one seed in a group are compared with each other, so they must come from one machine, from one text and, where
they are fine-tuned, from one start.  Records count if all runs of the group and seed have them so; if some are missing,
which are then trained here, only the records that this kind of machine made count; the other runs are trained again.
The runs of a row's search of learning rates belong together in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from experiments.engine.experiment import Experiment, all_experiments
from experiments.engine.grid import Grid, GridGroup, GridSettings
from experiments.engine.grid_runs import (
    PRETRAINING,
    GridCell,
    Planned,
    candidates,
    chosen,
    has_diverged,
    overrides_of,
    runs,
    start_cell,
)
from experiments.engine.origin import Origin, start_in
from ssa.command_line.settings import parse
from ssa.config import Config, short_id
from ssa.config import parse as parse_config
from ssa.errors import UserError
from ssa.evaluation.catalog import names
from ssa.evaluation.settings import EvaluateSettings
from ssa.launch.cluster import PROCESSES
from ssa.launch.run import Run
from ssa.record import records
from ssa.record.machine import Machine
from ssa.record.records import Record

FILE = "records.parquet"
_WITHOUT_EFFECT = {"tasks", "batch_size", "device", "output_dir", "rerun"}  # settings of evaluate.py
_START = "init_from="
Taken = dict[GridCell, Record]
K = TypeVar("K")


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
        path = committed(experiment, settings)
        if (settings.rerun and not settings.recompute) or settings.source is not None:
            return cls(grid, settings, path, ())
        paths = (committed(other, settings) for other in all_experiments() if other.name != experiment.name)
        others = [record for other in paths for record in records.read(other)]
        return cls(grid, settings, path, records.read(path), others)

    def plan(self) -> tuple[dict[GridCell, Run | None], Taken]:
        """All runs of the grid that are known by now, and the records that count."""
        taken = self.taken(runs(self.grid, self.settings))
        planned = runs(self.grid, self.settings, taken)  # with the learning rates of recorded searches
        return planned, self.taken(planned)

    def taken(self, planned: Planned) -> Taken:
        """The records that count, by cell."""
        blocks: dict[tuple[str, str, int], list[GridCell]] = {}
        for cell in planned:
            blocks.setdefault((cell.group, "" if cell.is_reported else cell.row, cell.seed), []).append(cell)
        found: Taken = {}
        for cells in sorted(blocks.values(), key=lambda cells: cells[0].is_reported):  # searches first
            found |= self._of_block(cells, planned, found)
        return found

    def missing(self, planned: Planned, taken: Mapping[GridCell, Record]) -> list[Run]:
        """Runs without a record that counts, and the pretrained models that these fine-tune."""
        untaken = [cell.group for cell in planned if cell not in taken and cell.group != PRETRAINING]
        needed = {start_cell(self._groups[name]) for name in untaken if self._groups[name].start}
        return [run for cell, run in planned.items() if run and (cell not in taken or cell in needed)]

    def write(self, path: Path, planned: Planned, taken: Mapping[GridCell, Record]) -> None:
        """Write the records that count, and those of all other runs that have finished here undamaged.

        A run of a search that diverged is a result, too.
        """
        made = list(taken.values())
        for cell, run in planned.items():
            with suppress(UserError):  # damaged: the table names it
                if run and (run.is_finished() or (cell.rates and has_diverged(run.error))):
                    if cell not in taken:
                        made.append(self.record(run, self.settings.evaluate if cell.is_reported else ()))
                    elif cell.group == PRETRAINING and self.record(run, ()) != taken[cell]:  # the start of runs here
                        made.append(self.record(run, ()))
        if made:
            records.write(path, made, self.path)

    def record(self, run: Run, evaluate: Sequence[str]) -> Record:
        """The record of the folder of a run that has ended; ``evaluate``: arguments of evaluate.py.

        Raises:
            UserError: it is damaged.
        """
        known = next((one for one in self.own if short_id(one.run.run_id) == run.config.short_id), None)
        tasks = names(_evaluation(evaluate).tasks) if evaluate else ()
        return records.record_of(run.folder, self._portable(run.overrides), evaluate, tasks, known)

    def _of_block(self, cells: Sequence[GridCell], planned: Planned, before: Taken) -> Taken:
        """The records that count, of the runs of one group and seed."""
        options: dict[Origin, Taken] = {}
        for cell in cells:
            for record in self._candidates(cell, planned, before):
                options.setdefault(Origin.of_record(record), {}).setdefault(cell, record)
        whole = next((option for option in options.values() if len(option) == len(cells)), None)
        if whole is not None or not options:
            return whole or {}
        counted = self._of_this_machine(cells, planned, options)
        if self.settings.render:  # and all others of runs that have not finished here
            for cell in cells:
                run = planned[cell]
                if cell not in counted and not (run and run.is_finished()):
                    counted |= next(({cell: option[cell]} for option in options.values() if cell in option), {})
        return counted

    def _of_this_machine(self, cells: Sequence[GridCell], planned: Planned, options: Mapping[Origin, Taken]) -> Taken:
        """The records that runs of this machine can be compared with."""
        group = self._groups.get(cells[0].group)
        base = planned.get(start_cell(group)) if group else None
        here = self._here([*(planned[cell] for cell in cells), base])
        known = {cell: run for cell in cells if (run := planned[cell]) and not run.refusal}
        starts = {cell: start_in(run.config.plain()) for cell, run in known.items()}
        return {
            cell: record
            for origin, option in options.items()
            for cell, record in option.items()
            if here is not None and origin.machine == here
            if origin.start == starts.get(cell, origin.start)  # not known: not trained here
        }

    def _candidates(self, cell: GridCell, planned: Planned, before: Taken) -> Iterator[Record]:
        """Records of the run of a cell: by id, or by overrides where what it depends on may not be here."""
        run, group = planned[cell], self._groups.get(cell.group)
        model = self.grid.start_of(group) if group else None
        trains_start = model is not None and self.settings.scale in model.at
        if run is not None and not run.refusal and not trains_start:
            found: Iterable[Record] = self._by_id.get(run.config.short_id, ())
        elif group is not None and (declared := self._declared(group, cell, planned, before)):
            base = planned[start_cell(group)] if trains_start else None
            start = f"-{base.config.short_id}-" if base and not base.refusal else ""
            same = self._by_overrides.get(declared, ())
            found = (record for record in same if start in Path(_init_from(record)).name)
            if run is not None and not run.refusal:
                found = (record for record in found if _is_declared_so(record, run))
        else:
            found = ()
        yield from (record for record in found if not cell.is_reported or _is_evaluated(record, self.settings))

    def _declared(self, group: GridGroup, cell: GridCell, planned: Planned, before: Taken) -> tuple[str, ...]:
        """Overrides of a run other than the start; empty where its learning rates are not known yet."""
        (row,) = (row for row in self.grid.rows if row.name == cell.row)
        tried, rates = candidates(self.grid, group, row, self.settings), cell.rates
        if tried and rates is None:
            rates = tried[0] if len(tried) == 1 else chosen(planned, group.name, row.name, before)
            if rates is None:
                return ()
        return _without_start(self._portable(overrides_of(self.grid, self.settings, cell, (), rates)))

    @cached_property
    def _groups(self) -> dict[str, GridGroup]:
        return {group.name: group for group in self.grid.groups}

    @cached_property
    def _by_id(self) -> dict[str, list[Record]]:
        return _grouped((short_id(record.run.run_id), record) for record in (*self.own, *self.others))

    @cached_property
    def _by_overrides(self) -> dict[tuple[str, ...], list[Record]]:
        return _grouped((_without_start(record.overrides), record) for record in (*self.own, *self.others))

    def _here(self, runs: Iterable[Run | None]) -> Machine | None:
        """The kind of machine that would train these runs; None: not known, as on a cluster."""
        run = next((run for run in runs if run and not run.refusal), None)
        if run is None or self.settings.launcher != PROCESSES:
            return None
        with suppress(UserError):  # no such device: training will say so
            return Machine.here(run.config.trainer, threads=1)  # as `Run.start` has it
        return None

    def _portable(self, overrides: Iterable[str]) -> list[str]:
        """Overrides that are the same for every output folder."""
        kept = (text for text in overrides if not text.startswith(("output_dir=", "logger=")))
        return [text.replace(f"={self.settings.output_dir}/", "=outputs/") for text in kept]


def committed(experiment: Experiment, settings: GridSettings) -> Path:
    """The file of the records behind an experiment's table."""
    return experiment.result(settings.output_dir, f"{settings.scale}_{FILE}")


def _but_start(config: Config) -> dict[str, Any]:
    """What determines a run's numbers, without the model that it fine-tunes and that one's tokenizer."""
    identity = config.identity()
    start, data = identity.pop("init_from"), dict(identity["data"])
    if data["tokenizer"] == start:
        del data["tokenizer"]
    return {**identity, "data": data}


def _is_declared_so(record: Record, run: Run) -> bool:
    """Whether a record is of a run, but for what it fine-tunes: the options in ``conf/`` may have changed since."""
    try:
        return _but_start(parse_config(record.run.config)) == _but_start(run.config)
    except UserError:  # of another version
        return False


def _init_from(record: Record) -> str:
    return next((text.removeprefix(_START) for text in record.overrides if text.startswith(_START)), "")


def _without_start(overrides: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in overrides if not text.startswith(_START))


def _grouped(pairs: Iterable[tuple[K, Record]]) -> dict[K, list[Record]]:
    found: dict[K, list[Record]] = {}
    for key, record in pairs:
        found.setdefault(key, []).append(record)
    return found


def _evaluation(arguments: Sequence[str]) -> EvaluateSettings:
    return parse(EvaluateSettings, ["run=RUN", *arguments])


def _is_evaluated(record: Record, settings: GridSettings) -> bool:
    """Whether it has the outcomes of the tasks that are asked for, with the same settings."""
    if not settings.evaluate:
        return True
    try:
        recorded = _evaluation(record.evaluate)
    except UserError:  # of another version
        return False
    same = recorded.model_dump(exclude=_WITHOUT_EFFECT) == settings.evaluation.model_dump(exclude=_WITHOUT_EFFECT)
    return same and set(settings.tasks()) <= {evaluation["task"] for evaluation in record.evaluations}
