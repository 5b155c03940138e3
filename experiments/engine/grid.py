"""Grids of training runs: every row of settings in every group, with every seed.

``config.yaml`` declares the grid under ``grid:``; `experiments.engine.grid_experiment` runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from experiments.engine.claims import Claim, EffectSizes, Name, effect_sizes
from experiments.engine.design import FineTuning, Pretrained, RateSearch
from experiments.engine.experiment import Experiment, TrainingSettings
from ssa.command_line.settings import parse, typed
from ssa.config import SCALES, PositiveFloat, PositiveInt, Scale, Section
from ssa.config_errors import closest, one_line
from ssa.errors import UserError
from ssa.evaluation.settings import EvaluateSettings
from ssa.launch.cluster import PROCESSES


class GridRow(Section):
    """A variant of the model."""

    name: Name
    overrides: list[str] = Field(description="overrides of train.py")


class GridGroup(Section):
    """A backbone and a way of training it, within which rows are compared."""

    name: Name
    overrides: list[str] = Field([], description="overrides of train.py")
    at: dict[Scale, list[str]] = Field(
        {scale: [] for scale in SCALES},
        min_length=1,
        description="scales at which it is run, each with further overrides",
    )
    start: Name | None = Field(None, description="pretrained model that it fine-tunes; null: trained from scratch")
    seeds: dict[Scale, PositiveInt] = Field({}, description="largest number of seeds, where it is not the grid's")
    search: dict[Scale, RateSearch] = Field({}, description="search of learning rates; with start, as in fine_tuning")


class Metric(Section):
    """A column of the table."""

    name: Name
    key: Name = Field(description="column of `ssa.record.runs.load`")
    task: str | None = Field(None, description="task of evaluate.py that measures it; null: training does")
    digits: int = Field(3, description="digits after the point")
    compared: bool = Field(False, description="show the difference to the first row and its p-value")
    smallest: PositiveFloat | None = Field(
        None, description="smallest difference of interest, declared before the runs; claims need it"
    )
    minus_first: bool = Field(False, description="subtract the value of the first row at equal seed")
    fine_tuned: bool = Field(False, description="only groups that fine-tune have it")
    geometric: bool = Field(False, description="average its logarithm, as of ratios")
    meaning: str = Field("", description="what it is, for the caption")


class Grid(Section):
    """The declaration of a grid."""

    groups: list[GridGroup] = Field(min_length=1)
    rows: list[GridRow] = Field(min_length=2, description="the first is the baseline")
    metrics: list[Metric] = Field(min_length=1)
    claims: list[Claim] = Field([], description="statements on which a verdict is made")
    notes: str = Field("", description="part of the caption")
    fine_tuning: FineTuning = FineTuning()

    @model_validator(mode="before")
    @classmethod
    def _last_metrics(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``last_metrics``, which several grids share, follow the grid's own ``metrics``."""
        last = values.get("last_metrics", [])
        rest = {key: value for key, value in values.items() if key != "last_metrics"}
        return {**rest, "metrics": [*rest.get("metrics", []), *last]} if last else rest

    @model_validator(mode="after")
    def _names_are_known(self) -> Grid:
        known = {
            "group": [group.name for group in self.groups],
            "row": [row.name for row in self.rows],
            "metric": [metric.name for metric in self.metrics],
        }
        for what, names in known.items():
            if len(set(names)) < len(names):
                raise ValueError(f"{what}s: a name twice in {', '.join(names)}")
        asked = [(what, getattr(claim, what)) for claim in self.claims for what in known]
        asked += [("row", claim.against) for claim in self.claims]
        known["start"] = [model.name for model in self.fine_tuning.pretrained]
        asked += [("start", group.start) for group in self.groups if group.start is not None]
        for what, name in asked:
            if name not in known[what]:
                raise ValueError(f"{what} {name}: not in the grid; valid: {', '.join(known[what])}")
        for claim in self.claims:
            if self.metric(claim.metric).smallest is None:
                raise ValueError(f"metric {claim.metric}: a claim needs smallest=, the smallest difference of interest")
        for group in self.groups:
            if model := self.start_of(group):
                lacking = [scale for scale in group.at if scale not in model.at and scale not in model.published]
                if lacking:
                    raise ValueError(f"group {group.name}: start={model.name} is nowhere at {lacking[0]}")
        return self

    def only(self, groups: Sequence[str], rows: Sequence[str]) -> Grid:
        """The part with these groups and rows, all if none are named, and the claims on them.

        Raises:
            UserError: a name is not in the grid, or a single row is left.
        """
        all_groups, all_rows = [group.name for group in self.groups], [row.name for row in self.rows]
        for key, asked, valid in (("groups", groups, all_groups), ("rows", rows, all_rows)):
            if wrong := [name for name in asked if name not in valid]:
                listed = ", ".join(f'"{name}"' if "," in name else name for name in valid)
                raise UserError(f"{key}={wrong[0]}: not in the grid{closest(wrong[0], valid)}; valid: {listed}")
        if len(set(rows)) == 1:
            raise UserError(f"rows={rows[0]}: nothing to compare it with; valid: at least two rows")
        kept_groups = [group for group in self.groups if not groups or group.name in groups]
        kept_rows = [row for row in self.rows if not rows or row.name in rows]
        names = {group.name for group in kept_groups} | {row.name for row in kept_rows}
        claims = [claim for claim in self.claims if {claim.group, claim.row, claim.against} <= names]
        return self.model_copy(update={"groups": kept_groups, "rows": kept_rows, "claims": claims})

    def metric(self, name: str) -> Metric:
        return next(metric for metric in self.metrics if metric.name == name)

    def claims_at(self, scale: str) -> list[Claim]:
        """The claims on groups that are run at a scale, with or without finished runs."""
        groups = {group.name for group in self.groups if scale in group.at}
        return [claim for claim in self.claims if claim.group in groups]

    def effect_sizes(self, claim: Claim, experiment: Experiment) -> EffectSizes:
        """The sizes against which a claim is judged; see `experiments.engine.claims.effect_sizes`."""
        smallest = self.metric(claim.metric).smallest
        assert smallest is not None  # validated
        return effect_sizes(claim, smallest, experiment)

    def start_of(self, group: GridGroup) -> Pretrained | None:
        """The model that a group fine-tunes."""
        return None if group.start is None else self.fine_tuning.model(group.start)

    def overrides_of(self, group: GridGroup, scale: Scale) -> tuple[str, ...]:
        """Overrides of all runs of a group, without what it fine-tunes."""
        tuning = () if group.start is None else self.fine_tuning.overrides.get(scale, ())
        return (*group.overrides, *tuning, *group.at[scale])

    def search_of(self, group: GridGroup, scale: Scale) -> RateSearch | None:
        """The search of learning rates in a group."""
        of_all = {} if group.start is None else self.fine_tuning.search
        return group.search.get(scale) or of_all.get(scale)


def declared(experiment: Experiment, settings: GridSettings | None = None) -> Grid:
    """The grid of an experiment, or the part of it that settings name.

    Raises:
        UserError: its ``config.yaml`` declares no valid one.
    """
    try:
        grid = Grid.model_validate(experiment.grid)
    except ValidationError as error:
        raise UserError(f"{experiment.where}: grid: {one_line(error, Grid)}") from None
    return grid if settings is None else grid.only(settings.groups, settings.rows)


class GridSettings(TrainingSettings):
    """Command-line settings of a grid."""

    evaluate: list[str] = Field(
        [], description="comma-separated arguments of evaluate.py for each finished run: tasks=passkey,trials=5"
    )
    groups: list[Name] = Field([], description="only these groups of the grid; empty: all")
    rows: list[Name] = Field([], description="only these rows; empty: all")
    plan: bool = Field(False, description="only print the runs, tokens, time and disk space needed")
    fail_fast: bool = Field(False, description="stop at the first failed run; the others save a checkpoint")
    launcher: Name = Field(PROCESSES, description="processes: of this machine; or an option of hydra/launcher")
    launcher_overrides: list[str] = Field([], description="comma-separated hydra.launcher.KEY=VALUE")
    render: bool = Field(False, description="only make the table, from records and runs that have finished")
    recompute: Name | None = Field(
        None, description="id of a run: only train it from nothing, in its own folder, and compare it with its record"
    )
    source: Name | None = Field(None, description="wandb:ENTITY/PROJECT: make the table from runs on W&B, run nothing")

    @field_validator("evaluate", mode="before")
    @classmethod
    def _join_values(cls, arguments: list[Any]) -> list[str]:
        """``tasks=a,b`` is one argument."""
        joined: list[str] = []
        for argument in map(typed, arguments):
            if "=" in argument or not joined:
                joined.append(argument)
            else:
                joined[-1] += f",{argument}"
        return joined

    def tasks(self) -> list[str]:
        """Tasks of evaluate.py for each finished run.

        Raises:
            UserError: invalid arguments of evaluate.py.
        """
        from ssa.evaluation.catalog import names

        return names(self.evaluation.tasks) if self.evaluate else []

    @property
    def evaluation(self) -> EvaluateSettings:
        """Settings of evaluate.py, with ``RUN`` for the run.

        Raises:
            UserError: invalid arguments of evaluate.py.
        """
        for argument in self.evaluate:
            if argument.startswith(("run=", "init_from=")):
                raise UserError(f"{argument}: the experiment's own runs are evaluated; valid: other keys")
        return parse(EvaluateSettings, ["run=RUN", *self.evaluate])
