"""Pictures of an evaluation at W&B: attention entropy and temperatures, layer by head."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from ssa.viz import plot_style

_HEAD = re.compile(r"val/(attention_entropy|temperature/\w+)/layer_(\d+)/head_(\d+)")
KEYS = {"attention": "attention/entropy_map", "temperature": "temperature/map"}
_INCHES = 4.2  # of a map; a temperature has one for each projection


def pictures(row: Mapping[str, Any]) -> dict[str, Any]:
    """W&B images by key of a row of metrics.jsonl; none of a row without heads, or without Matplotlib."""
    maps: dict[str, dict[str, dict[tuple[int, int], float]]] = {}
    for name, value in row.items():
        if found := _HEAD.fullmatch(name):
            kind, _, label = found[1].replace("_", "/").partition("/")
            maps.setdefault(kind, {}).setdefault(label, {})[int(found[2]), int(found[3])] = value
    if not maps or not plot_style.available():
        return {}
    return {KEYS[kind]: _image(kind, panels) for kind, panels in maps.items()}


def _image(kind: str, panels: Mapping[str, Mapping[tuple[int, int], float]]) -> Any:
    import numpy as np
    import wandb
    from PIL import Image

    file = io.BytesIO()
    with plot_style.figure(_INCHES * len(panels), _INCHES) as drawing:
        for axes, (label, cells) in zip(
            drawing.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            shape = tuple(max(places) + 1 for places in zip(*cells, strict=True))
            values = np.full(shape, np.nan)
            values[tuple(zip(*cells, strict=True))] = list(cells.values())
            unit = "entropy, nats" if kind == "attention" else f"{label} temperature"
            plot_style.heat_map(axes, values, rows=range(shape[0]), columns=range(shape[1]), label=unit)
            axes.set(xlabel="head", ylabel="layer")
        drawing.savefig(file, format="png", dpi=100)
    return wandb.Image(Image.open(file))
