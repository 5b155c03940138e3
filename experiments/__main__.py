"""Compute a table or figure of the paper: ``python -m experiments NAME scale=smoke|laptop|overnight|gpu|paper``."""

from __future__ import annotations

import importlib.util
import sys
import time
from functools import partial

from experiments.engine import all as all_of_them
from experiments.engine import evidence
from experiments.engine.experiment import Experiment, ExperimentSettings, all_experiments, find_experiment
from experiments.engine.grid import GridSettings
from experiments.engine.grid_check import check
from experiments.engine.own_grid import COMPARE, PURPOSE, CompareSettings, comparison, experiment_of_file, is_file
from ssa.command_line.output import keep_writable
from ssa.command_line.settings import complain, program
from ssa.config import SCALES
from ssa.errors import UserError
from ssa.paths import EXPERIMENTS, INSTALLED, command, install

FILES = {
    "experiments/engine/": "runs experiments: grids of runs, cached jobs, conclusions, tables",
    "ssa/launch/": "training runs as processes, several at once",
}
USAGE = f"usage: {command('-m experiments')} NAME scale={'|'.join(SCALES)} KEY=VALUE ...; NAME --help lists the keys"


def main(arguments: list[str]) -> int:
    keep_writable()
    if not arguments or arguments[0] in ("--help", "-h"):
        where = EXPERIMENTS if INSTALLED else EXPERIMENTS.name
        listed = {experiment.name: experiment.purpose for experiment in all_experiments()}
        listed |= {"FILE.yaml": f"a grid of your own, with at least rows; {where}/README.md has an example"}
        listed |= {COMPARE: PURPOSE, all_of_them.NAME: all_of_them.PURPOSE}
        listed |= {evidence.NAME: evidence.PURPOSE}
        width = max(map(len, listed))
        lines = [f"  {name:<{width}}  {purpose}" for name, purpose in listed.items()]
        print("\n".join([USAGE, "", *lines, "", f"{where}/NAME/ has the settings, results and README of each"]))
        return 0
    try:
        if arguments[0] == COMPARE:
            return compare(arguments[1:])
        if arguments[0] == all_of_them.NAME:
            return program(
                all_of_them.AllSettings,
                partial(all_of_them.run, compute=run),
                name=f"-m experiments {all_of_them.NAME}",
                purpose=all_of_them.PURPOSE,
                examples=("scale=overnight plan=true", "scale=smoke"),
                files=FILES,
                arguments=arguments[1:],
            )
        if arguments[0] == evidence.NAME:
            return program(
                evidence.EvidenceSettings,
                evidence.run,
                name=f"-m experiments {evidence.NAME}",
                purpose=evidence.PURPOSE,
                examples=("", "to=/tmp/evidence"),
                files=FILES,
                arguments=arguments[1:],
            )
        also = (COMPARE, all_of_them.NAME, evidence.NAME, "FILE.yaml")
        experiment = experiment_of_file(arguments[0]) if is_file(arguments[0]) else find_experiment(arguments[0], also)
        scale = next((text.removeprefix("scale=") for text in arguments if text.startswith("scale=")), "laptop")
        return program(
            experiment.settings,
            partial(run, experiment),
            name=f"-m experiments {arguments[0]}",
            purpose=experiment.purpose,
            examples=("scale=smoke", "scale=laptop", "scale=laptop rerun=true to=/tmp/again"),
            files={experiment.where: "the settings, at each scale", **FILES},
            arguments=arguments[1:],
            defaults=experiment.values(scale if scale in SCALES else "laptop"),
        )
    except UserError as error:
        return complain(error)


def compare(arguments: list[str]) -> int:
    """The command ``compare``, whose grid follows from its settings."""
    return program(
        CompareSettings,
        lambda settings: run(comparison(settings.models, settings.sizes), settings),
        name=f"-m experiments {COMPARE}",
        purpose=PURPOSE,
        examples=("models=gpt2,ssa_gpt2 scale=smoke", "models=llama,ssa_llama sizes=nano,micro seeds=5"),
        files=FILES,
        arguments=arguments,
        defaults={"seeds": 3},
    )


def run(experiment: Experiment, settings: ExperimentSettings) -> None:
    """Computes an experiment, writes its results and prints its conclusions."""
    lacking = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(
            f"{' and '.join(lacking)}: not installed; to install all that experiments need: {install('experiments')}"
        )
    from rich.console import Console

    from experiments.engine.context import ExperimentContext
    from ssa.launch.pool import failures

    if isinstance(settings, GridSettings):
        check(experiment, settings)
    console, began = Console(highlight=False, soft_wrap=True), time.perf_counter()
    if isinstance(settings, GridSettings) and settings.plan:
        from experiments.engine.plan import show

        return show(experiment, settings, console)
    if isinstance(settings, GridSettings) and settings.recompute:
        from experiments.engine.recompute import recompute

        return recompute(experiment, settings, console)
    context = ExperimentContext(experiment, settings, console)
    console.print(f"{experiment.name}, scale={settings.scale}: {experiment.purpose}")
    try:
        experiment.run(settings, context)
        seconds = time.perf_counter() - began
        context.finish(seconds)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("finished work is kept; rerun the command to resume") from None
    finally:
        context.discard()
    for conclusion in context.conclusions:
        console.print(conclusion.row(settings.scale)["sentence"], markup=False)
    console.print(f"{seconds:.0f} s; results: {context.folder}/{settings.scale}_*")
    if context.failed:
        raise UserError(failures(context.failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
