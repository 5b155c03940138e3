"""Checks of a grid's declaration and settings, before anything is printed or trained."""

from __future__ import annotations

from experiments.engine.design import LR, MULTIPLIER, keys
from experiments.engine.experiment import Experiment
from experiments.engine.grid import Grid, GridSettings, declared
from experiments.engine.grid_runs import runs
from ssa.command_line.preflight import check_evaluated_inputs
from ssa.errors import UserError
from ssa.launch.cluster import PROCESSES, check_launcher


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
    at_scale = [group for group in grid.groups if settings.scale in group.at]
    groups = [each for group in at_scale for each in grid.overrides_of(group, settings.scale)]
    searched = [LR, MULTIPLIER] if any(grid.search_of(group, settings.scale) for group in at_scale) else []
    setting = {
        "rows": rows,
        "groups": groups,
        "searches of learning rates": searched,
        "experiment": ["seed=", "output_dir=", "logger="],
    }
    for override in settings.train:
        key = override.partition("=")[0]
        for what, overrides in setting.items():
            if override not in usual and key in keys(overrides):
                where = f"{what} set {key}" if what != "experiment" else f"{key}= is a setting of the experiment"
                raise UserError(
                    f"train={override}: the {where}; valid: another key, or edit {experiment.folder}/config.yaml"
                )
