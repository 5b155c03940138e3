"""Export of an adapted model of transformers: its temperatures alone, or with the base in one folder.

With the base, the folder has the base's weights and config, the files of `ssa.save`, and `modeling_adapted`, through
which ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` loads both where this package is
installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssa.adapter.files import save_temperatures
from ssa.adapter.hf_model import HFModel, quiet
from ssa.files import replacing, to_json, writing
from ssa.pretrained.source import local_folder

_MODULE = Path(__file__).with_name("modeling_adapted.py")


def export_temperatures(target: Path, model: HFModel, base: str) -> None:
    """Write the temperatures alone.  ``base``: the pretrained model that they belong to."""
    model.inner.config._name_or_path = base if local_folder(base) is None else str(local_folder(base))
    with writing(f"to={target}"), replacing(target) as partial:
        save_temperatures(model.inner, partial)


def export_whole(target: Path, model: HFModel, texts: Mapping[str, str], dtype: torch.dtype) -> None:
    """Write the base and, if it has any, its temperatures.

    Args:
        target: the folder.
        model: with temperatures or without.
        texts: contents of the tokenizer's files and of the README, by name.
        dtype: of the base's stored weights.
    """
    inner, has_temperatures = model.inner, bool(model.config.temperature.scaled)
    ours = {name.removeprefix("inner.") for name in model.temperature_state()}
    state = {name: _stored(tensor, dtype) for name, tensor in inner.state_dict().items() if name not in ours}
    inner.config._name_or_path = ""
    with writing(f"to={target}"), replacing(target) as partial:
        with quiet():
            inner.save_pretrained(partial, state_dict=state)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        described = {
            **json.loads(str(model.config.hf_config)),
            "architectures": [type(inner).__name__],
            "dtype": str(dtype).removeprefix("torch."),
        }
        if has_temperatures:
            save_temperatures(inner, partial)
            (partial / _MODULE.name).write_text(_MODULE.read_text(encoding="utf-8"), encoding="utf-8")
            described["auto_map"] = {"AutoModelForCausalLM": f"{_MODULE.stem}.AdaptedModel"}
        (partial / "config.json").write_text(to_json(described), encoding="utf-8")


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
