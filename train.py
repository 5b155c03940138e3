"""Train a model: ``python train.py model=ssa_gpt2 data=wikitext``; see ``--help``."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from ssa.command_line import cli, preflight
from ssa.config import Config
from ssa.imports import preload

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(config: Config, command: list[str]) -> float:
    """Train; returns the validation loss of the best weights, which sweepers minimize; NaN of a plan."""
    if config.plan.show:
        preload("ssa.training.train")  # so that this process is as large as one that trains
        from ssa.planning.report import show

        show(config)
        return math.nan
    preflight.check_train(config)
    preload("ssa.training.train")  # imports torch, which takes seconds
    from ssa.launch import ranks

    return float(ranks.train(config, command).get("best/val/loss", "nan"))


def summarize(jobs: list[Config]) -> None:
    """Print the runs of a multirun that differ in their seed alone as one row each."""
    if len({config.seed for config in jobs}) > 1 and not any(config.plan.show for config in jobs):
        from rich.console import Console

        from ssa.record.run_record import run_folder
        from ssa.record.run_table import table
        from ssa.record.runs import read_run
        from ssa.report import variants
        from ssa.report.console import show

        folders = dict.fromkeys(map(run_folder, jobs))
        if found := variants.table(table(read_run(folder) for folder in folders if folder.is_dir())):
            print(f"\n{found.heading}")
            show(found, Console(highlight=False, soft_wrap=True))


def main(composed: DictConfig) -> float:
    """Train on a config composed by Hydra."""
    return cli.run(composed, train)


if __name__ == "__main__":
    sys.exit(
        cli.command_line(
            main,
            preflight.check_job,
            summarize,
            program="train.py",
            purpose="Train a GPT-style language model, with or without SSA.",
        )
    )
