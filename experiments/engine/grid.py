"""Grids of training runs: every row of settings in every group, with every seed.

``config.yaml`` declares the grid under ``grid:``; `experiments.engine.grid_experiment` runs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from experiments.engine.claims import Claim, EffectSizes, Name, effect_sizes
from experiments.engine.experiment import Experiment, TrainingSettings
from experiments.engine.shared_runs import start_of
from ssa.command_line.preflight import check_evaluated_inputs
from ssa.command_line.settings import parse, typed
from ssa.config import SCALES, PositiveFloat, Scale, Section
from ssa.config_errors import one_line
from ssa.errors import UserError
from ssa.evaluation.settings import EvaluateSettings
from ssa.launch.cluster import PROCESSES, check_launcher
from ssa.launch.run import Run


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
    start: dict[Scale, str] = Field(
        {},
        description="group whose first row's run of equal seed is fine-tuned; other scales set init_from",
    )


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


class Grid(Section):
    """The declaration of a grid."""

    groups: list[GridGroup] = Field(min_length=1)
    rows: list[GridRow] = Field(min_length=2, description="the first is the baseline")
    metrics: list[Metric] = Field(min_length=1)
    claims: list[Claim] = Field(min_length=1)
    notes: str = Field("", description="part of the caption")

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
        asked += [("group", name) for group in self.groups for name in group.start.values()]
        for what, name in asked:
            if name not in known[what]:
                raise ValueError(f"{what} {name}: not in the grid; valid: {', '.join(known[what])}")
        for claim in self.claims:
            if self.metric(claim.metric).smallest is None:
                raise ValueError(f"metric {claim.metric}: a claim needs smallest=, the smallest difference of interest")
        by_name = {group.name: group for group in self.groups}
        for group in self.groups:
            for scale, name in group.start.items():
                if scale not in by_name[name].at or scale in by_name[name].start:
                    raise ValueError(f"group {group.name}: at {scale} {name} is not trained from scratch")
        return self

    def metric(self, name: str) -> Metric:
        return next(metric for metric in self.metrics if metric.name == name)

    def claims_at(self, scale: str) -> list[Claim]:
        """The claims on groups that are run at a scale, whatever became of their runs."""
        groups = {group.name for group in self.groups if scale in group.at}
        return [claim for claim in self.claims if claim.group in groups]

    def effect_sizes(self, claim: Claim, experiment: Experiment) -> EffectSizes:
        """The sizes against which a claim is judged; see `experiments.engine.claims.effect_sizes`."""
        smallest = self.metric(claim.metric).smallest
        assert smallest is not None  # validated
        return effect_sizes(claim, smallest, experiment)


def declared(experiment: Experiment) -> Grid:
    """The grid of an experiment.

    Raises:
        UserError: its ``config.yaml`` declares no valid one.
    """
    try:
        return Grid.model_validate(experiment.grid)
    except ValidationError as error:
        raise UserError(f"{experiment.folder / 'config.yaml'}: grid: {one_line(error, Grid)}") from None


class GridSettings(TrainingSettings):
    """Command-line settings of a grid."""

    evaluate: list[str] = Field(
        [], description="comma-separated arguments of evaluate.py for each finished run: tasks=passkey,trials=5"
    )
    plan: bool = Field(False, description="only print the runs, tokens, time and disk space needed")
    fail_fast: bool = Field(False, description="stop at the first failed run; the others save a checkpoint")
    launcher: Name = Field(PROCESSES, description="processes: of this machine; or an option of hydra/launcher")
    launcher_overrides: list[str] = Field([], description="comma-separated hydra.launcher.KEY=VALUE")
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


class GridCell(NamedTuple):
    """A run's place in a grid."""

    group: str
    row: str
    seed: int


def check(experiment: Experiment, settings: GridSettings) -> None:
    """Checks everything that needs no finished run, before anything is printed or trained.

    Raises:
        UserError: the declaration of the grid is invalid, or settings are refused.
    """
    grid = declared(experiment)
    for claim in grid.claims:
        grid.effect_sizes(claim, experiment)
    check_train(experiment, grid, settings)
    if settings.source is not None:
        from ssa.record.wandb_runs import project_of  # imports pandas

        project_of(settings.source)
    elif settings.launcher != PROCESSES:
        check_launcher(settings.launcher, settings.launcher_overrides)
    if settings.evaluate:
        from ssa.evaluation import catalog  # imports torch

        first = (run for cell, run in runs(grid, settings).items() if run and cell.seed == 0)
        try:
            check_evaluated_inputs(settings.evaluation)
            catalog.check(settings.evaluation, [run.config for run in first if not run.refusal])
        except UserError as error:
            raise UserError(f"evaluate={error}") from None


def check_train(experiment: Experiment, grid: Grid, settings: GridSettings) -> None:
    """Checks that ``train=`` sets nothing that the grid overrides.

    Raises:
        UserError: it does.
    """
    usual = experiment.values(settings.scale)["train"]
    rows = [override for row in grid.rows for override in row.overrides]
    groups = [each for group in grid.groups for each in (*group.overrides, *group.at.get(settings.scale, ()))]
    setting = {"row": rows, "group": groups, "experiment": ["seed=", "output_dir=", "logger="]}
    for override in settings.train:
        key = override.partition("=")[0]
        for what, overrides in setting.items():
            if override not in usual and key in {each.partition("=")[0] for each in overrides}:
                where = f"{what}s set {key}" if what != "experiment" else f"{key}= is a setting of the experiment"
                raise UserError(
                    f"train={override}: the {where}; valid: another key, or edit {experiment.folder}/config.yaml"
                )


def runs(grid: Grid, settings: GridSettings) -> dict[GridCell, Run | None]:
    """The runs at the scale, in the order of the table; None where the run to fine-tune has not finished."""
    found: dict[GridCell, Run | None] = {}
    where = (f"output_dir={settings.output_dir}/experiments", f"logger={settings.logger}")
    groups = [group for group in grid.groups if settings.scale in group.at]
    for group in sorted(groups, key=lambda group: settings.scale in group.start):  # starts come first
        for row, seed in itertools.product(grid.rows, range(settings.seeds)):
            cell = GridCell(group.name, row.name, seed)
            start = _start(grid, group, seed, settings, found)
            if start is None:
                found[cell] = None
            else:
                of_group = (*group.overrides, *group.at[settings.scale], *start)
                overrides = (*settings.train, *of_group, *row.overrides, f"seed={seed}", *where)
                found[cell] = Run(overrides, *cell)
    names = [group.name for group in grid.groups]
    return dict(sorted(found.items(), key=lambda pair: names.index(pair[0].group)))


def _start(
    grid: Grid, group: GridGroup, seed: int, settings: GridSettings, known: Mapping[GridCell, Run | None]
) -> Sequence[str] | None:
    """Overrides that name the model to fine-tune; None where it does not exist yet."""
    if settings.scale not in group.start:
        return ()

    base = known.get(GridCell(group.start[settings.scale], grid.rows[0].name, seed))
    try:
        if base is None or not base.is_finished():
            return None
        return start_of(base.folder, settings.output_dir, write=not settings.plan)
    except UserError:  # its overrides are refused, or its weights are damaged
        return None
