"""Checks of a grid's declaration and settings, before anything is printed or trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.engine import speed_ups
from experiments.engine.design import LR, MULTIPLIER, keys
from experiments.engine.experiment import Experiment
from experiments.engine.grid import Grid, GridSettings, Metric, declared
from experiments.engine.grid_runs import runs
from ssa.command_line.preflight import check_evaluated_inputs, check_job
from ssa.config import SCALES, Config, Scale
from ssa.config_errors import closest
from ssa.errors import UserError
from ssa.launch.cluster import PROCESSES, check_launcher

_OF_ALL = ("seed", "output_dir", "logger")
_OF_TEXT = ("loss", "perplexity", "word_perplexity", "bits_per_byte")
_OF_TEMPERATURES = ("temperature_position", "temperature_token")
_OF_ATTENTION = ("attention_entropy", "attention_entropy_normalized", "attention_spikiness", *_OF_TEMPERATURES)
COLUMNS = [  # that every run has, of `ssa.record.runs.load` and of the grid; those of attention also by layer and head
    *(f"best/val/{name}" for name in (*_OF_TEXT, *_OF_ATTENTION)),
    *(f"best/test/{name}" for name in _OF_TEXT),
    *(f"parameters.{name}" for name in ("total", "non_embedding", "temperature")),
    *("tokens", "best_step", "train_seconds", "tokens_per_second", "peak_memory_bytes", speed_ups.KEY),
]


def check(experiment: Experiment, settings: GridSettings) -> None:
    """Checks everything that needs no finished run, before anything is printed or trained.

    Raises:
        UserError: the declaration of the grid is invalid, or settings are refused.
    """
    grid = declared(experiment, settings)
    if not any(settings.scale in group.at for group in grid.groups):
        scales = [scale for scale in SCALES if any(scale in group.at for group in grid.groups)]
        where = f"scale={settings.scale}: has no run of {', '.join(group.name for group in grid.groups)}"
        raise UserError(f"{where}; valid: another of groups=, or scale={' or '.join(scales)}")
    for claim in grid.claims:
        grid.effect_sizes(claim, experiment)
    check_train(experiment, grid, settings)
    if settings.render and settings.rerun:
        raise UserError("render=true, rerun=true: valid: one of them; render=true trains nothing")
    if settings.source is not None and (found := _depends_on_runs(grid, settings.scale)):
        raise UserError(f"source={settings.source}: {found}; valid: with grids and scales without; try render=true")
    if experiment.is_own:
        _check_own(grid, settings)
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


def _depends_on_runs(grid: Grid, scale: Scale) -> str:
    """Why the runs of a grid are known only from finished ones; empty if they are not."""
    for group in (group for group in grid.groups if scale in group.at):
        model = grid.start_of(group)
        if model and scale in model.at:
            return f"{group.name} fine-tunes a model that the grid trains, whose weights are not on W&B"
        if grid.search_of(group, scale):
            return f"{group.name} has a search of learning rates, which is not read from W&B"
    return ""


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
                raise UserError(f"train={override}: the {where}; valid: another key, or edit {experiment.where}")


def _check_own(grid: Grid, settings: GridSettings) -> None:
    """Checks every run and every column of a user's grid, where nothing may be missing.

    Raises:
        UserError: a run would be refused, or a column is measured by none.
    """
    from ssa.text.corpus import open_corpus  # imports numpy

    of_groups = ((group.name, [*group.overrides, *group.at.get(settings.scale, [])]) for group in grid.groups)
    for name, overrides in (*((row.name, row.overrides) for row in grid.rows), *of_groups):
        if found := next((text for text in overrides if text.partition("=")[0] in _OF_ALL), None):
            raise UserError(f"{name}: overrides: {found}: a setting of the whole grid; valid: on the command line")
    planned, texts = {cell: run for cell, run in runs(grid, settings).items() if run}, set[str]()
    rows: dict[tuple[str, str], str] = {}
    for cell, run in planned.items():
        try:
            if run.refusal:
                raise UserError(run.refusal)
            if cell.seed == 0:
                check_job(run.config)
                same = rows.setdefault((cell.group, run.config.short_id), cell.row)
                if same != cell.row:
                    raise UserError(f"the same run as {same}; valid: rows that differ in their overrides")
            data = run.config.data
            if data.source == "text" and data.model_dump_json() not in texts:
                texts.add(data.model_dump_json())
                next(open_corpus(data).documents("train"), None)  # reads the first file
        except UserError as error:
            raise UserError(f"{run.label}: {error}") from None
    some = next(iter(planned.values())).config
    for metric in grid.metrics:
        _check_metric(metric, some, settings)


def _check_metric(metric: Metric, config: Config, settings: GridSettings) -> None:
    key, where = metric.key, f"metrics: {metric.name}: key={metric.key}"
    if metric.task is not None:
        if metric.task not in settings.tasks():
            asked = f"evaluate=tasks={','.join([*settings.tasks(), metric.task])}"
            raise UserError(f"metrics: {metric.name}: task={metric.task}: not evaluated; valid: with {asked}")
        if not key.startswith(f"eval/{metric.task}/"):
            raise UserError(f"{where}: valid: eval/{metric.task}/METRIC")
    elif key.startswith("config."):
        if not _has(config.plain(), key.split(".")[1:]):
            raise UserError(f"{where}: no such setting; valid: config.KEY, with a key of train.py")
    elif key.partition("/layer_")[0] not in COLUMNS:
        raise UserError(f"{where}: no such column{closest(key, COLUMNS)}; valid: {', '.join(COLUMNS)}; config.KEY")


def _has(values: Any, path: Sequence[str]) -> bool:
    return not path or (isinstance(values, Mapping) and path[0] in values and _has(values[path[0]], path[1:]))
