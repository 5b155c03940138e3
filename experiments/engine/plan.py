"""Plan of a grid, printed before anything is run: runs, tokens, time, disk and statistical power."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.engine import power_plan
from experiments.engine.experiment import Experiment
from experiments.engine.grid import Grid, GridSettings, declared
from experiments.engine.grid_records import FILE, GridRecords, Taken
from experiments.engine.grid_runs import GridCell, Planned, overrides_of
from ssa.config import Config
from ssa.device import resolve_precision
from ssa.launch.pool import refused
from ssa.launch.run import Run
from ssa.planning.disk import checkpoints
from ssa.planning.flops import training_flops
from ssa.planning.hardware import timed_speed
from ssa.planning.parameters import Parameters, count_parameters, vocabulary
from ssa.progress import duration
from ssa.record.runs import load

_START = 4.0  # seconds of a run before and after training, on two cores
_KIND = ["config.scale", "config.model.name", "config.model.size", "config.data.block_size"]  # decide the speed


@dataclass(frozen=True)
class Plan:
    """What a grid has to do, from `Plan.of`."""

    grid: Grid
    settings: GridSettings
    planned: Planned
    taken: Taken
    missing: list[Run]

    @classmethod
    def of(cls, experiment: Experiment, settings: GridSettings) -> Plan:
        grid = declared(experiment, settings)
        records = GridRecords.of(experiment, grid, settings)
        planned, taken = records.plan()
        return cls(grid, settings, planned, taken, records.missing(planned, taken))

    @cached_property
    def known(self) -> list[Run]:
        """Runs that do not depend on unfinished ones, each once."""
        return list({run.folder: run for run in self.planned.values() if run and not run.refusal}.values())

    @cached_property
    def waiting(self) -> list[Run]:
        """Those that are to be trained."""
        return [run for run in self.known if run in self.missing and (self.settings.rerun or not run.is_finished())]

    @cached_property
    def unknown(self) -> list[GridCell]:
        """Runs that start from a pretrained model or wait for a search of learning rates."""
        return [cell for cell, run in self.planned.items() if run is None]

    @cached_property
    def later(self) -> list[Run]:
        """Those without a record: in their stead runs from scratch, of the same size and number of tokens."""
        cells = [cell for cell in self.unknown if cell not in self.taken]
        return [Run(overrides_of(self.grid, self.settings, cell), cell.group) for cell in cells]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """All runs so far."""
        folder, recorded = Path(self.settings.output_dir) / "experiments", [one.run for one in self.taken.values()]
        if folder.is_dir() or recorded:
            return load(folder, checked=False, recorded=recorded)
        return pd.DataFrame(columns=["folder", "status", "damage"], dtype=str)

    @cached_property
    def cost(self) -> Cost:
        runs = [*self.waiting, *self.later]
        seconds, how = _seconds(runs, self.settings, self.frame)
        tokens = sum(_tokens_left(run, self.settings.rerun) for run in runs)
        return Cost(len(runs), tokens, seconds, how, _disk(runs, self.settings.jobs))


class Cost(NamedTuple):
    """What is left to do: runs, tokens, seconds with the settings' ``jobs`` and their source, bytes of disk."""

    runs: int
    tokens: int
    seconds: float
    how: str
    disk: int


def show(experiment: Experiment, settings: GridSettings, console: Console) -> None:
    plan = Plan.of(experiment, settings)
    for reason, number in Counter(refused(plan.missing).values()).items():
        console.print(f"{number} runs are refused: {reason}", markup=False)
    if plan.taken:
        console.print(f"{len(plan.taken)} of {len(plan.planned)} runs have a record, which counts as finished")
    table = Table("runs", "finished", "interrupted", "not started", "tokens to train", box=box.SIMPLE_HEAD)
    counts: dict[str, Counter[str]] = {}
    for run in plan.known:
        state = "finished" if run not in plan.waiting else "interrupted" if run.tokens_done() else "new"
        count = counts.setdefault(run.group_label, Counter())
        count[state] += 1
        count["tokens"] += _tokens_left(run, settings.rerun) if run in plan.waiting else 0
    for label, count in counts.items():
        states = [str(count[state]) for state in ("finished", "interrupted", "new")]
        table.add_row(label, *states, f"{count['tokens']:,}")
    console.print(table)
    if plan.later:
        console.print(
            f"and {len(plan.later)} runs that start from a pretrained model or wait for a search of learning rates, "
            f"{sum(run.tokens for run in plan.later):,} tokens"
        )
    cost = plan.cost
    console.print(
        f"{cost.runs} of {len(plan.known) + len(plan.unknown)} runs to do, {cost.tokens:,} tokens, about "
        f"{duration(cost.seconds)} with jobs={settings.jobs} ({cost.how}), {cost.disk / 1e9:,.1f} GB of disk"
    )
    powers = power_plan.claim_powers(experiment, plan.grid, settings, plan.planned, plan.frame, plan.taken)
    power_plan.show(*powers, console)


def _tokens_left(run: Run, rerun: bool) -> int:
    return run.tokens if rerun else run.tokens - run.tokens_done()


def _seconds(waiting: Sequence[Run], settings: GridSettings, frame: pd.DataFrame) -> tuple[float, str]:
    """Estimated duration of all runs, and what the estimate is based on.

    A run is as fast as finished ones of the same kind, else as its FLOPs at this machine's speed.
    """
    speeds: dict[tuple[object, ...], float] = {}  # tokens per second by kind
    here = ~frame["folder"].str.endswith(FILE)  # records may be of another machine
    finished = frame[here & (frame["status"] == "finished")]
    if len(finished):
        tokens_per_second = finished["tokens"] / finished["wall_seconds"]
        speeds = tokens_per_second.groupby([finished[key] for key in _KIND]).median().to_dict()
    estimated: set[tuple[object, ...]] = set()
    total = 0.0
    for run in waiting:
        kind = _kind(run.config)
        if kind not in speeds:
            speeds[kind] = _speed(run.config)
            estimated.add(kind)
        total += _tokens_left(run, settings.rerun) / speeds[kind] + (_START if kind in estimated else 0)
    how = (
        "estimated from FLOPs and a short timing on this machine, without evaluation"
        if estimated
        else "from finished runs"
    )
    return total / settings.jobs, how


def _kind(config: Config) -> tuple[object, ...]:
    return config.scale, config.model.name, config.model.size, config.data.block_size


def _parameters(config: Config) -> Parameters:
    return count_parameters(config.model, vocabulary(config).size, config.optim.train == "temperature")


def _disk(runs: Sequence[Run], jobs: int) -> int:
    """Bytes of the checkpoints of all runs, finished but for the largest ``jobs``, which train."""
    sizes = [checkpoints(run.config, _parameters(run.config)) for run in runs]
    while_training = sorted((size.training - size.finished for size in sizes), reverse=True)
    return sum(size.finished for size in sizes) + sum(while_training[:jobs])


def _speed(config: Config) -> float:
    """Tokens per second of training on one thread."""
    flops = training_flops(config, _parameters(config)).total
    precision = resolve_precision(config.trainer.precision, torch.device("cpu"))
    return config.tokens * timed_speed(precision, threads=1) / flops
