"""Files of runs, evaluations, sweeps and experiments, and what reads them, for tests of damaged files."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import run_folders
import yaml
from grid_experiments import make_experiment
from rich.console import Console

from experiments.engine import experiment as experiment_module
from experiments.engine.experiment import Experiment
from experiments.engine.grid import declared
from experiments.engine.job_cache import JobCache
from ssa.command_line.settings import help_text, parse
from ssa.evaluation import results
from ssa.evaluation.scoring.context import Journal
from ssa.record import checksums, records, runs
from ssa.record.run_files import load_config, read_environment, read_evaluation, read_rows, read_summary
from ssa.record.run_record import RunRecord, read_status
from ssa.report.page.run_data import environments, page_data
from ssa.training.summary import print_end
from sweeps.declaration import as_overrides
from sweeps.declaration import load as load_sweep

CONFIG = next(run_folders.configs())
SILENT = Console(file=io.StringIO(), width=200)


def run_file(name: str) -> Callable[[Path], Path]:
    """A file in the folder of a finished run, which has a neighbor."""

    def write(folder: Path) -> Path:
        run_folders.write(folder / CONFIG.run_id, CONFIG, random.Random(0))
        run_folders.write(folder / "neighbor", CONFIG, random.Random(1), 1)
        return folder / CONFIG.run_id / name

    return write


def reader(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A reader of a run folder, and all that reads a folder of runs, which one damaged run does not stop."""

    def use(folder: Path) -> Any:
        run = folder / CONFIG.run_id
        table = runs.load(folder)
        assert len(table) in (1, 2)
        for key in ("best/val/loss", "eval/perplexity/loss"):
            if key in table:
                table[key].map(float)
        page_data(table)
        environments(table)
        checksums.damage(run)
        print_end(SILENT, read_summary(folder / "neighbor", complete=True), folder / "neighbor")
        with redirect_stdout(io.StringIO()):
            results.find(run / "evaluation", "perplexity", {})
        return read(run)

    return use


def recorded(folder: Path) -> Path:
    run_folders.write(folder / CONFIG.run_id, CONFIG, random.Random(0))
    records.write(folder / "records.parquet", [records.record_of(folder / CONFIG.run_id, ())])
    return folder / "records.parquet"


def resume(run: Path) -> None:
    record = RunRecord(CONFIG.model_copy(update={"resume": str(run)}), run, None)  # type: ignore[arg-type]
    with redirect_stdout(io.StringIO()):
        record.rewind(10**6, 12)


def sweep(folder: Path) -> Path:
    space = {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "seed": {"type": "int", "low": 0, "high": 4},
        "model": {"type": "categorical", "choices": ["gpt2", "ssa_gpt2"]},
    }
    values = {"metric": "best/val/loss", "overrides": ["scale=smoke"], "space": space, "pruner": {"name": "median"}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder / "sweep.yaml"


def read_sweep(folder: Path) -> None:
    found = load_sweep(folder / "sweep.yaml")
    for dimension in found.space.values():
        as_overrides({str(number): value for number, value in enumerate(dimension.extremes())})


def grid(folder: Path) -> Path:
    return make_experiment(folder, folder / "text.txt") / "config.yaml"


def read_grid(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_module, "EXPERIMENTS", folder)
        patch.setattr(experiment_module, "SHARED", folder)
        experiment = Experiment("tiny")
        help_text(experiment.settings, "tiny", experiment.purpose, defaults=experiment.values("laptop"))
        parse(experiment.settings, ["scale=smoke"], experiment.values("smoke"))
        declared(experiment)


def jobs(folder: Path) -> Any:
    """The result of a cached job, which is computed again where it cannot be read."""
    cache = JobCache(folder / "jobs", "jobs", "c0ffee", 1, False, SILENT)
    return cache.compute([(yaml.safe_dump, {"data": [1, 2.5, "x"]})]), cache.commits


def job(folder: Path) -> Path:
    jobs(folder)
    (path,) = (folder / "jobs").glob("*.json")
    return path


REQUESTS = {f"request {number}": [-1.5 * number, number % 2 == 0] for number in range(8)}


def journal(folder: Path) -> Path:
    Journal(folder, "task", {}).add(list(REQUESTS.items()))
    (path,) = folder.glob(".*.journal")
    return path


def read_journal(folder: Path) -> Any:
    """The answers, where those that are lost or damaged are given again."""
    found = Journal(folder, "task", {})
    return [found.get(request) or answer for request, answer in REQUESTS.items()]


# How to write the file, alone in a folder, and to read it there; whether the reader gives the same for a damaged file
RECORDS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any], bool]] = {
    "config.yaml": (run_file("config.yaml"), reader(load_config), False),
    "status.json": (run_file("status.json"), reader(read_status), False),
    "metrics.jsonl": (run_file("metrics.jsonl"), reader(read_rows), False),
    "metrics.jsonl of a run to resume": (
        run_file("metrics.jsonl"),
        lambda folder: resume(folder / CONFIG.run_id),
        True,
    ),
    "summary.json": (run_file("summary.json"), reader(lambda run: read_summary(run, complete=True)), False),
    "environment.json": (run_file("environment.json"), reader(read_environment), False),
    "results of a task": (
        run_file("evaluation/perplexity.json"),
        reader(lambda run: read_evaluation(run / "evaluation" / "perplexity.json")),
        False,
    ),
    "journal of a task": (journal, read_journal, True),
    "records of runs": (recorded, lambda folder: records.read(folder / "records.parquet"), False),
    "declaration of a sweep": (sweep, read_sweep, False),
    "declaration of a grid": (grid, read_grid, False),
    "cached job": (job, jobs, True),
}

IN_RUNS = [name for name, (_, read, _) in RECORDS.items() if read.__name__ == "use"]  # whose readers are slow
