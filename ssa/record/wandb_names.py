"""Names at W&B: metric keys in the sections of its automatic workspace; the group and tags of a run.

A workspace makes a section of all keys with the same first part: ``train``, ``val``, ``attention``, ``temperature``.
metrics.jsonl and summary.json keep their own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import fmean
from typing import Any, get_args

from ssa.config import Config, Detail
from ssa.files import hash_of
from ssa.redaction import redacted

_KEYS = {  # beginning of a name in metrics.jsonl, the first that fits: beginning of the key at W&B
    "val/temperature_": "temperature/",
    "val/temperature/": "temperature/",
    "val/attention_": "attention/",
}
OF_ROWS = ("train/", "val/", *dict.fromkeys(_KEYS.values()))  # how their keys begin, in W&B runs of older versions too
_LONGEST = 64  # characters of a tag
_LAYER_MEAN = re.compile(r"(val/temperature/\w+)/layer_\d+/mean")


def at_wandb(row: Mapping[str, Any], detail: Detail) -> dict[str, Any]:
    """A row of metrics.jsonl by W&B's keys, without what is finer than ``detail``.

    Means of the temperatures over layers, which the row lacks, are added: ``temperature/query``.
    """
    shown = {_key(name): value for name, value in row.items() if _level(name) <= get_args(Detail).index(detail)}
    return shown | {_key(name): value for name, value in layer_means(row).items()}


def layer_means(row: Mapping[str, Any]) -> dict[str, float]:
    """Means of the temperatures over layers, which a row of metrics.jsonl lacks: ``val/temperature/query``."""
    layers: dict[str, list[float]] = {}
    for name, value in row.items():
        if name.endswith("/mean") and isinstance(value, int | float) and (found := _LAYER_MEAN.fullmatch(name)):
            layers.setdefault(found[1], []).append(value)
    return {name: fmean(values) for name, values in layers.items()}


def of_run(config: Config) -> dict[str, Any]:
    """Arguments of ``wandb.init``: the group, which all seeds of a setting share, and the tags."""
    setting = {field: value for field, value in config.identity().items() if field != "seed"}
    backbone, size, variant, data = config.names
    tags = [variant, backbone, size, config.scale, data, *config.logger.tags]
    return {
        "group": "-".join([*config.names, hash_of(setting)[:10]]),
        "tags": [tag[:_LONGEST] for tag in dict.fromkeys(redacted(tags))],
    }


def _key(name: str) -> str:
    for prefix, section in _KEYS.items():
        if name.startswith(prefix):
            return section + name.removeprefix(prefix)
    return name


def _level(name: str) -> int:
    """0: of the run, 1: of a layer, 2: of a head; the order of `Detail`."""
    return 2 if "/head_" in name else 1 if "/layer_" in name else 0
