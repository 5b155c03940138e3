"""Data configs for tests: what ``conf/data`` says, with some fields changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from conftest import ROOT
from omegaconf import OmegaConf

from ssa.command_line import cli  # noqa: F401  registers the resolvers of conf/
from ssa.config import DataConfig

CONF = ROOT / "conf" / "data"


def data_config(option: str, **fields: Any) -> DataConfig:
    """``data=option`` with ``fields``; a path may be a `Path`."""
    data = OmegaConf.merge(*(OmegaConf.load(CONF / f"{name}.yaml") for name in ("_base", option)))
    root = OmegaConf.create({"init_from": None, "data": data})
    values = cast("dict[str, Any]", OmegaConf.to_container(root.data, resolve=True))
    del values["defaults"]
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return DataConfig.model_validate({**values, **plain})
