"""Configs from overrides, without a terminal."""

from __future__ import annotations

from copy import deepcopy

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from ssa.command_line import cli, compose_errors
from ssa.command_line.values import with_literal_paths
from ssa.config import Config
from ssa.errors import UserError
from ssa.paths import CONF


def configured(*overrides: str) -> Config:
    """The config of ``python train.py OVERRIDES``.

    Raises:
        UserError: the overrides are refused.
    """
    try:
        return cli.configure(composed(*overrides))
    except compose_errors.COMPOSITION_ERRORS as error:
        raise UserError(compose_errors.explain(error, list(overrides))) from None


def composed(*overrides: str) -> DictConfig:
    """The config that Hydra composes from overrides; Hydra's own config is set too, as in a job."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", with_literal_paths(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(whole)
    job = deepcopy(whole)
    with read_write(job), open_dict(job):
        del job["hydra"]
    return job
