"""Training runs as jobs of a Hydra launcher: Slurm, Ray, or any other that is installed.

Hydra's plug-in does the scheduling.  A job starts one run with `ssa.launch.run.Run.start`: the output goes to the run's
log, and the results do not depend on the launcher.  The job itself succeeds even if its run fails.  The outcome is in
the run folders, which all machines must see under the same paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig

from ssa.command_line import compose_errors, submitit_output
from ssa.errors import UserError, first_line
from ssa.launch.run import Run
from ssa.paths import CONF, install

PROCESSES = "processes"  # the launcher of `ssa.launch.pool`; others are Hydra's
_RERUN = "rerun=true"  # a launcher passes nothing but overrides
_INSTALL = {
    "submitit_local": install("cluster"),
    "submitit_slurm": install("cluster"),
    "ray": "pip install hydra-ray-launcher",
    "ray_aws": "pip install hydra-ray-launcher",
    "joblib": "pip install hydra-joblib-launcher",
}


def launch(
    runs: Sequence[Run], launcher: str, output_dir: Path, launcher_overrides: Sequence[str] = (), *, rerun: bool = False
) -> None:
    """Submits the runs to a launcher and waits for all of them; each run folder says how its run ended.

    Args:
        runs: finished ones only print their summary again.
        launcher: an option of Hydra's group ``hydra/launcher``, such as ``submitit_slurm`` or ``ray``.
        output_dir: the launcher's own files go to its folder ``sweeps/<launcher>``.
        launcher_overrides: its settings, such as ``hydra.launcher.partition=gpu``.
        rerun: runs finished ones again.

    Raises:
        UserError: the launcher is not installed, a setting is not one of its own, or it failed as a whole, as without
            Slurm; jobs already started keep running, and the same call resumes them.
    """
    if not runs:
        return
    folder = Path(output_dir, "sweeps", launcher)
    with _composed(launcher, folder, launcher_overrides) as (hydra, config):
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        submitit_output.say_once()
        try:
            plugin = Plugins.instance().instantiate_launcher(context, _job, config)
            again = [_RERUN] if rerun else []
            ended = plugin.launch([[*run.overrides, *again] for run in runs], initial_job_idx=0)
            for job in ended:
                _ = job.return_value  # raises what stopped a job before its run
        except Exception as error:  # as many classes as there are launchers
            raise UserError(f"launcher={launcher}: {first_line(error)}; its files: {folder}") from None


def check_launcher(launcher: str, launcher_overrides: Sequence[str] = ()) -> None:
    """Refuse what `launch` would refuse before it submits a run.

    Raises:
        UserError: the launcher is not installed, or a setting is not one of its own.
    """
    with _composed(launcher, Path(), launcher_overrides):
        pass


@contextmanager
def _composed(launcher: str, folder: Path, overrides: Sequence[str]) -> Iterator[tuple[Hydra, DictConfig]]:
    """Hydra, and its config for the launcher."""
    settings = [f"hydra/launcher={launcher}", "hydra.mode=MULTIRUN", f"hydra.sweep.dir='{folder}'", *overrides]
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        _check(launcher, hydra.config_loader.get_group_options("hydra/launcher"), overrides)
        try:
            config = hydra.compose_config("config", settings, RunMode.MULTIRUN)
        except compose_errors.COMPOSITION_ERRORS as error:
            raise UserError(compose_errors.explain(error, overrides)) from None
        yield hydra, config


def _check(launcher: str, installed: Sequence[str], overrides: Sequence[str]) -> None:
    if launcher not in installed:
        how = f"not installed; {_INSTALL[launcher]}" if launcher in _INSTALL else "no such launcher is installed"
        raise UserError(f"launcher={launcher}: {how}; valid: {', '.join([PROCESSES, *sorted(installed)])}")
    for override in overrides:
        if not override.lstrip("+~").startswith("hydra.launcher."):
            raise UserError(f"launcher_overrides={override}: valid: hydra.launcher.SETTING=VALUE")


def _job(composed: DictConfig) -> int:
    """One run, in the job that the launcher started; returns its exit code."""
    overrides = tuple(HydraConfig.get().overrides.task)
    GlobalHydra.instance().clear()  # the launcher's: the run composes its own config
    process = Run(tuple(override for override in overrides if override != _RERUN)).start(rerun=composed.rerun)
    try:
        process.join()
    except BaseException:
        process.terminate()  # saves a checkpoint
        process.join()
        raise
    return process.exitcode or 0
