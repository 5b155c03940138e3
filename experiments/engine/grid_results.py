"""Results of a grid: metrics of its runs, gaps with their reasons, and statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from experiments.engine.claims import Claim
from experiments.engine.design import Rates, turns_on_rate
from experiments.engine.experiment import Experiment
from experiments.engine.grid import Grid, GridSettings, Metric
from experiments.engine.grid_runs import SEARCHED, GridCell, Recorded, chosen, losses, reported
from experiments.engine.origin import Origin
from experiments.engine.verdict import Comparison, Decision, decide
from ssa.config import short_id
from ssa.launch.run import Run
from ssa.perplexity import OF_TEXT
from ssa.record.checksums import NO_CHECKSUMS
from ssa.report.tables import State
from ssa.statistics import Estimate, holm, mean_interval, paired_interval, paired_p_value

ABSENT = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def _mean(metric: Metric, values: list[float]) -> Estimate:
    if metric.geometric:
        return mean_interval([math.log(value) for value in values]).exponential()
    return mean_interval(values)


class Gap(NamedTuple):
    """Why a run has no number: a state of `ssa.report.tables` and the reason in words."""

    state: State
    reason: str


class Statistic(NamedTuple):
    """A metric of one row in one group over seeds; n = 0 where there is no run.

    Attributes:
        mean: mean over valid runs with Student's 95% interval.
        difference: paired difference to the grid's first row at equal seed.
        p: paired t-test of a zero difference.
        p_holm: Holm-corrected over all differences of this metric in the grid, also unfinished ones (Holm 1979).
        runs: ids of the runs in ``mean``.
        base_runs: ids of the first row's runs in ``difference``.
    """

    group: str
    row: str
    metric: Metric
    mean: Estimate
    difference: Estimate
    p: float
    p_holm: float
    runs: tuple[str, ...]
    base_runs: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """Results of a grid.

    Attributes:
        planned: from `experiments.engine.grid_runs.runs`.
        failed: reasons of the runs that failed just now.
        unevaluated: reasons of the finished runs whose evaluation failed.
        frame: from `ssa.record.runs.load`.
        recorded: records of the runs that were not trained here.
    """

    experiment: Experiment
    grid: Grid
    settings: GridSettings
    planned: Mapping[GridCell, Run | None]
    failed: Mapping[Run, str]
    unevaluated: Mapping[Run, str]
    frame: pd.DataFrame
    recorded: Recorded = field(default_factory=dict)

    @cached_property
    def runs(self) -> dict[GridCell, Run | None]:
        """Those of the table."""
        return reported(self.planned)

    @cached_property
    def _cells(self) -> dict[tuple[str, str], list[GridCell]]:
        """Those of each group and row."""
        found: dict[tuple[str, str], list[GridCell]] = {}
        for cell in self.runs:
            found.setdefault((cell.group, cell.row), []).append(cell)
        return found

    @cached_property
    def _rows(self) -> dict[str, dict[str, Any]]:
        """The rows of the frame by id: lookups in a frame of thousands of columns are slow."""
        return {str(run_id): row for run_id, row in self.frame.to_dict("index").items()}

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(cell.group for cell in self.runs))

    @cached_property
    def is_on_other_text(self) -> bool:
        """Whether ``train=`` replaces the overrides of a grid of the paper, whose values then say nothing here."""
        declared = self.experiment.values(self.settings.scale).get("train")
        return not self.experiment.is_own and self.settings.train != declared

    def is_measured(self, metric: Metric) -> bool:
        """Whether training or the requested tasks measure it."""
        return metric.task is None or metric.task in self._tasks

    def run_id(self, cell: GridCell) -> str | None:
        """None if the overrides are refused, or what the run depends on has not finished."""
        if cell in self.recorded:
            return self.recorded[cell].run.run_id
        run = self.planned[cell]
        return self._ids.get(run.config.short_id, run.config.run_id) if run is not None and not run.refusal else None

    @cached_property
    def _ids(self) -> dict[str, str]:
        return {short_id(run_id): run_id for run_id in self.frame.index}

    @property
    def variants(self) -> dict[str, str]:
        """The variant of each row with a run, as in the table of runs."""
        ids = {cell.row: run_id for cell in self.runs if (run_id := self.run_id(cell)) in self.frame.index}
        return {row: str(self.frame.at[run_id, "variant"]) for row, run_id in ids.items()}

    @cached_property
    def _tasks(self) -> list[str]:
        return self.settings.tasks()

    def gap(self, cell: GridCell, metric: Metric) -> Gap | None:
        """Why a run has no valid value of a metric, if so."""
        run, run_id = None if cell in self.recorded else self.planned[cell], self.run_id(cell)
        found = self._rows.get(run_id) if run_id else None
        if found is not None and found["damage"] not in ("", NO_CHECKSUMS):  # first, as it may be why the run failed
            return Gap("damaged", f"left out, {found['damage']}")
        if run is not None and run in self.failed:
            return Gap("failed", self.failed[run])
        if run is not None and run.refusal:
            return Gap("missing", "not run")
        if run_id is None:
            return Gap("missing", "its start or the search of its rates has not finished, or is damaged")
        if found is None:
            return Gap("missing", f"not in {self.settings.source}" if self.settings.source else "not run")
        if found["status"] != "finished":
            state: State = "failed" if found["status"] == "failed" else "missing"
            return Gap(state, str(found["error"] or found["status"]))
        if metric.task is not None and run is not None and run in self.unevaluated:
            return Gap("failed", self.unevaluated[run])
        if pd.isna(found.get(metric.key)):
            lost = found.get("loss_of_text") if metric.key.rpartition("/")[2] in OF_TEXT else None
            return Gap("missing", lost if isinstance(lost, str) else f"has no {metric.key}")
        return None

    def has(self, group: str, metric: Metric) -> bool:
        """Whether runs of a group have the metric."""
        (found,) = (one for one in self.grid.groups if one.name == group)
        return not metric.fine_tuned or found.start is not None

    def n_seeds(self, group: str) -> int:
        """The number of seeds of a group."""
        return len({cell.seed for cell in self.runs if cell.group == group})

    def numbers(self, group: str, row: str, metric: Metric) -> dict[int, float]:
        """The metric of each valid run, by seed."""
        found = self._values(group, row, metric)
        if metric.minus_first:
            first = self._values(group, self.grid.rows[0].name, metric)
            return {seed: value - first[seed] for seed, value in found.items() if seed in first}
        return found

    def _values(self, group: str, row: str, metric: Metric) -> dict[int, float]:
        return {
            cell.seed: float(self._rows[str(self.run_id(cell))][metric.key])
            for cell in self._cells.get((group, row), [])
            if self.gap(cell, metric) is None
        }

    def finished(self, group: str) -> list[GridCell]:
        """The cells of a group whose runs are in the frame."""
        return [cell for cell in self.runs if cell.group == group and self.run_id(cell) in self.frame.index]

    def origin(self, cell: GridCell) -> Origin:
        return Origin.of_row(self._rows[str(self.run_id(cell))])

    def mixed(self, group: str, row: str, against: str, metric: Metric) -> dict[int, tuple[str, str]]:
        """Seeds at which the origins of the two rows differ, with both of them in words."""
        common = self.numbers(group, row, metric).keys() & self.numbers(group, against, metric).keys()
        found = {}
        for seed in sorted(common):
            one, other = (self.origin(GridCell(group, name, seed)) for name in (row, against))
            if different := one.difference(other):
                found[seed] = different
        return found

    def pairs(self, group: str, row: str, against: str, metric: Metric) -> tuple[list[float], list[float]]:
        """The metric of two rows at the common seeds at which their origins do not differ."""
        first, second = self.numbers(group, row, metric), self.numbers(group, against, metric)
        seeds = sorted((first.keys() & second.keys()) - self.mixed(group, row, against, metric).keys())
        return [first[seed] for seed in seeds], [second[seed] for seed in seeds]

    def difference(self, group: str, row: str, against: str, metric: Metric) -> Estimate:
        """Paired difference of two rows; n = 0 without a common seed."""
        values, bases = self.pairs(group, row, against, metric)
        return paired_interval(values, bases) if values else ABSENT

    @cached_property
    def statistics(self) -> list[Statistic]:
        """One for each measured metric, group and row."""
        found: list[Statistic] = []
        for metric in filter(self.is_measured, self.grid.metrics):
            of_metric = [self._statistic(group, row.name, metric) for group in self.groups for row in self.grid.rows]
            adjusted = holm([1.0 if self._is_unfinished(one) else one.p for one in of_metric])
            found += [
                one._replace(p_holm=math.nan if math.isnan(one.p) else p)
                for one, p in zip(of_metric, adjusted, strict=True)
            ]
        return found

    def _is_unfinished(self, one: Statistic) -> bool:
        """Whether it will have a p-value: the family of Holm's correction is fixed before the runs."""
        compared = one.metric.compared and one.row != self.grid.rows[0].name and self.has(one.group, one.metric)
        return compared and math.isnan(one.p)

    def _statistic(self, group: str, row: str, metric: Metric) -> Statistic:
        base, numbers = self.grid.rows[0].name, self.numbers(group, row, metric)
        pairs = self.pairs(group, row, base, metric) if metric.compared and row != base else ([], [])
        shared = numbers.keys() & self.numbers(group, base, metric).keys() if pairs[0] else set()
        shared -= self.mixed(group, row, base, metric).keys() if pairs[0] else set()
        return Statistic(
            group,
            row,
            metric,
            _mean(metric, list(numbers.values())) if numbers else ABSENT,
            self.difference(group, row, base, metric) if pairs[0] else ABSENT,
            paired_p_value(*pairs)
            if len(pairs[0]) == self.n_seeds(group)
            else math.nan,  # not before all have finished
            math.nan,
            tuple(str(self.run_id(GridCell(group, row, seed))) for seed in numbers),
            tuple(str(self.run_id(GridCell(group, base, seed))) for seed in sorted(shared)),
        )

    def decisions(self) -> list[Decision]:
        """The verdict on each claim at the scale, in the order of `Grid.claims_at`."""
        return decide(
            [
                Comparison(
                    self.difference(claim.group, claim.row, claim.against, self.grid.metric(claim.metric)),
                    claim.expected,
                    self.grid.effect_sizes(claim, self.experiment),
                    self.n_seeds(claim.group),
                )
                for claim in self.grid.claims_at(self.settings.scale)
            ]
        )

    def run_table(self) -> list[dict[str, Any]]:
        """Table rows: every run and its metrics."""
        measured = [metric for metric in self.grid.metrics if self.is_measured(metric)]
        found = {(*place, one.name): self.numbers(*place, one) for place in self._cells for one in measured}
        rows = []
        for cell in self.runs:
            numbers = {one.name: found[cell.group, cell.row, one.name].get(cell.seed, math.nan) for one in measured}
            numbers = {name: int(value) if value.is_integer() else value for name, value in numbers.items()}
            place = {"group": cell.group, "row": cell.row, "seed": cell.seed}
            rows.append({**place, **numbers, "run": self._run_that_is_there(cell)})
        return rows

    def _run_that_is_there(self, cell: GridCell) -> str:
        """Its id, or a dash: the id of a run that is not there may depend on what else is."""
        run_id = self.run_id(cell)
        return run_id if run_id is not None and run_id in self.frame.index else "-"

    @cached_property
    def _searches(self) -> dict[tuple[str, str], tuple[dict[Rates, float], Rates | None]]:
        """Losses of the search of learning rates and the chosen ones, by group and row."""
        places = dict.fromkeys((cell.group, cell.row) for cell in self.planned if cell.rates)
        given = self.planned, self.recorded
        return {(g, r): (losses(given[0], g, r, given[1]), chosen(given[0], g, r, given[1])) for g, r in places}

    def search_table(self) -> list[dict[str, Any]]:
        """Table rows: every run of the searches of learning rates; the loss is infinite where it failed."""
        rows = []
        for cell in self.planned:
            if cell.rates is not None:
                found, best = self._searches[cell.group, cell.row]
                rows.append(
                    {
                        "group": cell.group,
                        "row": cell.row,
                        "seed": cell.seed,
                        "learning rate": cell.rates.lr,
                        "multiplier": math.nan if cell.rates.multiplier is None else cell.rates.multiplier,
                        "validation loss": found.get(cell.rates, math.nan),
                        "chosen": cell.rates == best,
                        "run": self._run_that_is_there(cell),
                    }
                )
        return rows

    def claims_that_turn(self) -> list[Claim]:
        """The claims on validation loss whose sign, at the search's seed, depends on the rate that both rows share."""

        def of(group: str, row: str) -> dict[Rates, float]:
            return self._searches.get((group, row), ({}, None))[0]

        searched = [metric.name for metric in self.grid.metrics if metric.key == SEARCHED]
        return [
            claim
            for claim in self.grid.claims
            if claim.metric in searched and turns_on_rate(of(claim.group, claim.row), of(claim.group, claim.against))
        ]

    def statistic_table(self) -> list[dict[str, Any]]:
        return [
            {
                "group": one.group,
                "row": one.row,
                "metric": one.metric.name,
                **{name: getattr(one.mean, name) for name in ("n", "mean", "sd", "low", "high")},
                **{f"difference {name}": getattr(one.difference, name) for name in ("n", "mean", "sd", "low", "high")},
                "p": one.p,
                "p (Holm)": one.p_holm,
                "runs": " ".join(one.runs) or "-",
            }
            for one in self.statistics
        ]
