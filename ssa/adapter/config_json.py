"""The config of a model of transformers from the text of its config.json, without its folder."""

from __future__ import annotations

import json
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

# Keys that say nothing about what a model computes, or that its loader changes
VOLATILE = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "use_cache")


def config_of(text: str) -> PretrainedConfig:
    """The config in a config.json.

    Raises:
        Exception: of any kind; the config classes check their values in many ways.
    """
    values = json.loads(text, object_hook=_decoded)
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _decoded(values: dict[str, Any]) -> Any:
    """transformers writes a float that JSON lacks as ``{"__float__": "Infinity"}``."""
    return float(values["__float__"]) if values.keys() == {"__float__"} else values
