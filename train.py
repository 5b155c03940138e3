"""Train one model, for example ``python train.py model=ssa_gpt2 data=wikitext``; ``--help`` lists what can be set."""

import sys

import hydra
from omegaconf import DictConfig

from ssa.command_line import cli, preflight
from ssa.config import Config


def train(config: Config, command: list[str]) -> float:
    """Train as `config` says; returns the validation loss, the number a sweeper minimizes."""
    preflight.check_train(config)
    from ssa.training import train as job  # imports torch, which takes seconds

    return float(job.train(config, command)["best/val/loss"])


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(composed: DictConfig) -> float:
    """One job: what Hydra composed, made typed, then trained."""
    return cli.run(composed, train)


if __name__ == "__main__":
    sys.exit(
        cli.command_line(main, program="train.py", purpose="Train a GPT-style language model, with or without SSA.")
    )
