"""Search hyperparameters with Optuna: ``python -m sweeps sweeps/optuna_learning_rate.yaml trials=20 jobs=2``."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ssa.command_line.output import keep_writable
from ssa.command_line.settings import program
from ssa.config import PositiveInt, Section
from ssa.errors import UserError
from ssa.files import locked
from ssa.paths import command, install
from ssa.progress import ProgressBar
from ssa.record.inputs import Inputs
from ssa.training.inputs import inputs_of
from sweeps.declaration import Sweep, as_overrides, declared, load

USAGE = f"usage: {command('-m sweeps')} FILE.yaml KEY=VALUE ...; FILE.yaml --help lists the keys"


class Settings(Section):
    """Settings of the command line; only ``train`` makes a different study."""

    trials: PositiveInt = Field(20, description="total number of trials, earlier ones included")
    jobs: PositiveInt = Field(2, description="trials at once, each a process of one thread")
    train: list[str] = Field([], description="overrides of train.py for every trial, between commas")
    output_dir: Annotated[str, Field(min_length=1)] = Field("outputs", description="folder of the runs and the study")


def main(arguments: list[str]) -> int:
    keep_writable()
    if not arguments or arguments[0] in ("--help", "-h"):
        print("\n".join([USAGE, "", *(f"  {path}" for path in declared())]))
        return 0
    file = Path(arguments[0])
    return program(
        Settings,
        partial(run, file),
        name=f"-m sweeps {file}",
        purpose="Search hyperparameters with Optuna; rerun the command to resume.",
        examples=("trials=20 jobs=2", "trials=4 train=scale=smoke"),
        files={
            "sweeps/": "search spaces, *.yaml: optuna_* for this program, wandb_* for W&B sweeps",
            "sweeps/search.py": "trials and pruning",
            "ssa/launch/": "training runs as processes, several at once",
        },
        arguments=arguments[1:],
    )


def run(file: Path, settings: Settings) -> None:
    """Runs a sweep, and prints its result.

    Raises:
        UserError: the declaration is wrong, another process runs the same sweep, or some trials failed, at the end.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"optuna: not installed; {install('sweeps')}")
    sweep = load(file)
    more = [*settings.train, f"output_dir={settings.output_dir}"]
    try:
        configs = sweep.configs(more)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    folder = Path(settings.output_dir, "sweeps", file.stem)
    with ExitStack() as stack:
        try:
            in_use = f"{folder}: this sweep is already running in another process"
            stack.enter_context(locked(folder / ".lock", in_use, timeout=1))
        except OSError as error:
            raise UserError(f"output_dir={settings.output_dir}: {folder} cannot be written: {error.strerror}") from None
        _search(file, sweep, settings, (*sweep.overrides, *more), folder, inputs_of(configs))


def _search(
    file: Path, sweep: Sweep, settings: Settings, common: tuple[str, ...], folder: Path, inputs: Inputs
) -> None:
    import optuna
    from optuna.trial import TrialState
    from rich.console import Console

    from sweeps import results
    from sweeps.search import Search
    from sweeps.study import open_study, usable

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = Console(highlight=False, soft_wrap=True)
    study = open_study(folder, file.stem, sweep, common, inputs)

    def show() -> None:
        best = results.ranked(study, sweep)[:1]
        leading = f"  best {best[0].value:.5g} (trial {best[0].number})" if best else ""
        bar.update(ended(), results.counted(study).replace("interrupted", "running") + leading)

    def ended() -> int:
        return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))

    search = Search(study, sweep, common, settings.trials, settings.jobs, console.print, show)
    if search.known:
        console.print(f"{folder}: resumes {results.counted(study)}")
    with usable(folder), ProgressBar("trials", search.trials, completed=ended(), interval=30.0, console=console) as bar:
        try:
            search.finish()
        finally:
            file_of_trials = results.write(study, sweep, folder)
    console.print(results.table(study, sweep))
    console.print(f"every trial: {file_of_trials}")
    for best in results.ranked(study, sweep)[:1]:
        console.print(f"the best one: {command('train.py')} {shlex.join((*common, *as_overrides(best.params)))}")
    failed = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.FAIL]
    if failed:
        names = ", ".join(f"trial {trial.number} ({trial.user_attrs.get('note', '')})" for trial in failed)
        raise UserError(f"{len(failed)} of {len(study.trials)} trials failed: {names}")
    if search.stopped:
        raise UserError(
            f"{len(search.stopped)} trials stopped: {', '.join(search.stopped)}; rerun the command to resume"
        )
    if search.interrupted:
        raise KeyboardInterrupt("rerun the command to resume")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
