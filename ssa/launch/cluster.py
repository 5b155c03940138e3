"""A grid's runs as jobs of a Hydra launcher: Slurm, Ray, or any other that is installed.

Hydra's plug-in does the scheduling.  A job is one run, as `ssa.launch.run.start` starts it: its output goes to the
run's log, its numbers do not depend on the launcher, and whatever becomes of it, the job itself ends well.  What came
out is in the run folders, which all machines must see under the same paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from ssa.command_line import compose_errors
from ssa.command_line.conf_groups import CONF
from ssa.errors import UserError, first_line

if TYPE_CHECKING:
    from ssa.launch.run import Run

_INSTALL = {
    "submitit_local": "pip install -e '.[cluster]'",
    "submitit_slurm": "pip install -e '.[cluster]'",
    "ray": "pip install hydra-ray-launcher",
    "ray_aws": "pip install hydra-ray-launcher",
    "joblib": "pip install hydra-joblib-launcher",
}


def launch(
    runs: Sequence[Run], launcher: str, output_dir: Path, launcher_overrides: Sequence[str] = (), *, rerun: bool = False
) -> None:
    """Gives the runs to a launcher and waits until it has ended all of them; how each ended, its run folder says.

    Args:
        runs: to be trained; finished ones are reported again, at little cost.
        launcher: an option of Hydra's group ``hydra/launcher``, such as ``submitit_slurm`` or ``ray``.
        output_dir: the launcher's own files, such as the jobs' exit, go to ``sweeps/<launcher>`` below it.
        launcher_overrides: its settings, such as ``hydra.launcher.partition=gpu``.
        rerun: runs finished ones again.

    Raises:
        UserError: the launcher is not installed, a setting is not one of its own, or it failed as a whole, as without
            Slurm; jobs that it has begun go on, and the same call takes them up.
    """
    if not runs:
        return
    folder = Path(output_dir, "sweeps", launcher)
    settings = (f"hydra/launcher={launcher}", "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{folder}'", *launcher_overrides)
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        _check(launcher, hydra.config_loader.get_group_options("hydra/launcher"), launcher_overrides)
        try:
            config = hydra.compose_config("config", list(settings), RunMode.MULTIRUN)
        except compose_errors.COMPOSITION_ERRORS as error:
            raise UserError(compose_errors.explain(error, launcher_overrides)) from None
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        try:
            plugin = Plugins.instance().instantiate_launcher(context, _job, config)
            again = ["rerun=true"] if rerun else []
            ended = plugin.launch([[*run.overrides, *again] for run in runs], initial_job_idx=0)
            for job in ended:
                _ = job.return_value  # raises what stopped a job before its run
        except Exception as error:  # as many classes as there are launchers
            raise UserError(f"launcher={launcher}: {first_line(error)}; its files: {folder}") from None


def _check(launcher: str, installed: Sequence[str], overrides: Sequence[str]) -> None:
    if launcher not in installed:
        how = f"not installed; {_INSTALL[launcher]}" if launcher in _INSTALL else "no such launcher is installed"
        raise UserError(f"launcher={launcher}: {how}; valid: {', '.join(sorted(installed))}")
    for override in overrides:
        if not override.lstrip("+~").startswith("hydra.launcher."):
            raise UserError(f"launcher_overrides={override}: valid: hydra.launcher.SETTING=VALUE")


def _job(composed: DictConfig) -> int:
    """One run, where the launcher has put it; returns its exit code."""
    from ssa.launch.run import Run, start

    overrides = tuple(HydraConfig.get().overrides.task)
    GlobalHydra.instance().clear()  # the launcher's, in whose place the run composes its own config
    rerun = "rerun=true" in overrides
    run = Run(tuple(override for override in overrides if override != "rerun=true"), " ".join(overrides))
    process = start(run, rerun=rerun)
    try:
        process.join()
    except BaseException:
        process.terminate()  # it saves where it is
        process.join()
        raise
    return process.exitcode or 0
