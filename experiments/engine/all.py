"""All experiments in turn: ``python -m experiments all scale=...``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import Field
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.engine.experiment import Experiment, ExperimentSettings, all_experiments
from experiments.engine.grid import GridSettings
from ssa.config import PositiveInt, Scale, Section
from ssa.errors import UserError
from ssa.files import parse_json
from ssa.processes import preload
from ssa.progress import duration

NAME = "all"
PURPOSE = "all experiments in turn; plan=true prints what is left to do"


class AllSettings(Section):
    """Command-line settings of ``all``, which every experiment gets."""

    scale: Scale = Field("laptop", description="of every experiment that has it")
    jobs: PositiveInt = Field(2, description="parallel processes, one thread each; does not change any number")
    output_dir: Annotated[str, Field(min_length=1)] = Field("outputs", description="folder for runs and cached jobs")
    plan: bool = Field(False, description="only print the time and disk space needed")


def run(settings: AllSettings, compute: Callable[[Experiment, ExperimentSettings], None]) -> None:
    """Compute every experiment; one that fails does not stop the others.

    Raises:
        UserError: some failed; names them.
    """
    given = {"scale": settings.scale, "jobs": settings.jobs, "output_dir": settings.output_dir}
    asked = {one: one.settings(**{**one.values(settings.scale), **given}) for one in all_experiments()}
    if settings.plan:
        return _plan(asked, settings)
    preload("ssa.training.preloaded")  # cached jobs, which need torch alone, may come before the first grid
    failed = {}
    for experiment, its in asked.items():
        print(f"\n== {experiment.name}", flush=True)
        try:
            compute(experiment, its)
        except UserError as error:
            failed[experiment.name] = str(error)
            print(f"{experiment.name}: {error}", flush=True)
    if failed:
        raise UserError(
            f"{len(failed)} of {len(asked)} experiments failed: {', '.join(failed)}; rerun the command to resume"
        )


def _plan(asked: dict[Experiment, ExperimentSettings], settings: AllSettings) -> None:
    from experiments.engine.plan import Plan  # imports pandas

    table = Table("experiment", "runs", "tokens", "time", "disk, GB", box=box.SIMPLE_HEAD)
    total, disk, unknown = 0.0, 0, []
    for experiment, its in asked.items():
        if isinstance(its, GridSettings):
            cost = Plan.of(experiment, its).cost
            total, disk = total + cost.seconds, disk + cost.disk
            shown = (f"{cost.runs}", f"{cost.tokens:,}", duration(cost.seconds), f"{cost.disk / 1e9:.1f}")
        else:
            seconds = _seconds_before(experiment, settings)
            total += seconds or 0.0
            unknown += [] if seconds else [experiment.name]
            shown = ("", "", f"{duration(seconds)}*" if seconds else "-", "")
        table.add_row(experiment.name, *shown)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"about {duration(total)} with jobs={settings.jobs}, {disk / 1e9:,.1f} GB of disk", end="")
    console.print(f", without {', '.join(unknown)}, of which nothing is known" if unknown else "")
    console.print("Equal runs of several experiments are counted in each. *: as long as the committed results took.")


def _seconds_before(experiment: Experiment, settings: AllSettings) -> float | None:
    """How long the committed results of the scale took, with as many jobs; None where there are none."""
    path = experiment.result(settings.output_dir, f"{settings.scale}_provenance.json")
    if not path.exists():
        return None
    facts = parse_json(path.read_text(encoding="utf-8"), str(path))
    of_jobs = (facts["seconds_of_cached_jobs"] + facts["seconds_of_runs"]) / settings.jobs
    return float(max(facts["seconds"], of_jobs))
