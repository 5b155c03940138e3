"""Configs as the command line makes them."""

from __future__ import annotations

from copy import deepcopy

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from ssa.command_line import cli
from ssa.command_line.conf_groups import CONF
from ssa.config import Config


def composed_by_hydra(*overrides: str) -> DictConfig:
    """The composed config of a job, and Hydra's own set up for it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    job = deepcopy(composed)
    with read_write(job), open_dict(job):
        del job["hydra"]
    return job


def configured(*overrides: str) -> Config:
    """What `overrides` on the command line come to."""
    return cli.configure(composed_by_hydra(*overrides))
