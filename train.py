"""Train a model: ``python train.py model=ssa_gpt2 data=wikitext``; see ``--help``."""

import sys

from omegaconf import DictConfig

from ssa.command_line import cli, preflight
from ssa.config import Config
from ssa.imports import preload


def train(config: Config, command: list[str]) -> float:
    """Train; returns the validation loss of the best weights, which sweepers minimize."""
    preflight.check_train(config)
    preload("ssa.training.train")  # imports torch, which takes seconds
    from ssa.training import train as job

    return float(job.train(config, command)["best/val/loss"])


def main(composed: DictConfig) -> float:
    """Train on a config composed by Hydra."""
    return cli.run(composed, train)


if __name__ == "__main__":
    sys.exit(
        cli.command_line(
            main,
            preflight.check_job,
            program="train.py",
            purpose="Train a GPT-style language model, with or without SSA.",
        )
    )
