"""Saving the temperatures of an adapted model alone, and loading them onto its base.

A folder has ``ssa_adapter.json`` (the rule, the base model, the sizes), ``ssa_adapter.safetensors`` (float32 unless the
base is float64) and a model card.  Files of PEFT have other names, so that both fit into one folder.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from ssa.adapter.adapt import Train, adaptation, add_temperatures, causal_lm
from ssa.adapter.layer import adapted_layers
from ssa.errors import UserError, first_line
from ssa.files import expanded, hash_of, parse_json, to_json, write_atomic, writing
from ssa.hub_client import NotInRepository, download
from ssa.model.config import TemperatureConfig
from ssa.model.sharding import gathered

CONFIG, WEIGHTS = "ssa_adapter.json", "ssa_adapter.safetensors"
_FORMAT = 1
_FREQUENCIES = "ssa_frequencies.log_frequency"
# Keys of a model's config that say nothing about what it computes, or that its loader changes.
_VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


def save_temperatures(model: Any, folder: str | Path, state_dict: Mapping[str, Tensor] | None = None) -> Path:
    """Write the temperatures of an adapted model, and what they belong to, into a folder.

    Args:
        model: adapted; also with adapters of PEFT, which ``model.save_pretrained`` writes into the same folder.
        folder: made if it does not exist; other files in it are kept.
        state_dict: of the whole model, where its parameters are sharded, as from ``accelerator.get_state_dict``.

    Returns:
        The folder.

    Raises:
        UserError: the model has no temperatures, or the folder cannot be written.
    """
    inner, found = causal_lm(model), adaptation(model)
    if found is None:
        raise UserError("model: has no temperatures to save; ssa.adapt(model) adds them")
    tensors = _state(inner, state_dict)
    content = {
        "format": _FORMAT,
        "temperature": found.temperature.plain(),
        "base": _base(inner),
        "layers": {name: layer.sizes() for name, layer in adapted_layers(inner).items()},
    }
    folder = expanded(folder)
    with writing(f"folder={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, save(tensors, {"format": "pt"}))
        write_atomic(folder / CONFIG, to_json(content))
        if not (folder / "README.md").exists():
            write_atomic(folder / "README.md", _card(content, sum(tensor.numel() for tensor in tensors.values())))
    return folder


def load_temperatures(
    model: Any, folder: str | Path, *, train: Train = "temperature", revision: str | None = None
) -> Any:
    """Adapt a base model with temperatures that were saved.

    Args:
        model: the base model, also with adapters of PEFT.
        folder: from `save_temperatures`, or the id of a repository on the Hub.
        train: as in `adapt`.
        revision: of the repository.

    Returns:
        The model.

    Raises:
        UserError: the folder has no temperatures or damaged ones, or they belong to another architecture.
    """
    config_file, weights_file = _files(folder, revision)
    where = f"folder={folder}"
    content = parse_json(config_file.read_bytes(), f"{where}: {CONFIG}")
    try:
        temperature = TemperatureConfig.from_plain(content["temperature"])
        base, layers = dict(content["base"]), dict(content["layers"])
        tensors = load_file(weights_file)
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{where}: damaged ({first_line(error)})") from None
    inner = causal_lm(model)
    ours = _base(inner)
    if base.get("model_type") != ours["model_type"]:
        raise UserError(
            f"{where}: temperatures of a {base.get('model_type')} ({base.get('name')}); the model is a "
            f"{ours['model_type']} ({ours['name']})"
        )
    frequencies = tensors.pop(_FREQUENCIES, None)
    add_temperatures(model, temperature, train=train, log_frequency=frequencies, expected=(where, layers))
    parameters = {
        f"{name}.temperature.{key}": parameter
        for name, layer in adapted_layers(inner).items()
        for key, parameter in layer.named_parameters()
    }
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])
    if base.get("config_hash") != ours["config_hash"]:
        warnings.warn(
            f"{where}: trained on {base.get('name')} (revision {base.get('revision')}), whose config is not that of "
            f"this model, {ours['name']}",
            stacklevel=2,
        )
    return model


def push_to_hub(model: Any, repo_id: str, **options: Any) -> str:
    """Save the temperatures of an adapted model into a repository on the Hub, which is made if it does not exist.

    Args:
        model: adapted.
        repo_id: ``ORG/NAME``.
        options: of `huggingface_hub.HfApi.upload_folder`, such as ``commit_message``; ``private`` for a new repository.

    Returns:
        The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save_temperatures(model, folder)
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))


def _state(model: PreTrainedModel, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    layers = adapted_layers(model).items()
    names = [f"{name}.temperature.{key}" for name, layer in layers for key, _ in layer.named_parameters()]
    state = model.state_dict() if state_dict is None else state_dict
    named = {name: next((key for key in state if key.endswith(name)), None) for name in [*names, _FREQUENCIES]}
    if missing := [name for name in names if named[name] is None]:
        raise UserError(f"state_dict: has no {missing[0]}")
    return {name: gathered(state[key]).detach().cpu().contiguous() for name, key in named.items() if key is not None}


def _base(model: PreTrainedModel) -> dict[str, Any]:
    """What identifies a base model."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}
    return {
        "name": model.config._name_or_path or None,
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "config_hash": hash_of(json.loads(json.dumps(config, default=str))),
    }


def _files(folder: str | Path, revision: str | None) -> tuple[Path, Path]:
    path = expanded(folder)
    if path.is_dir():
        for name in (CONFIG, WEIGHTS):
            if not (path / name).is_file():
                raise UserError(f"folder={folder}: has no {name}; valid: a folder that ssa.save has written")
        return path / CONFIG, path / WEIGHTS
    if isinstance(folder, Path) or folder.count("/") != 1 or folder.startswith((".", "~", "/")):
        raise UserError(f"folder={folder}: no such folder")
    try:
        config, weights = (download(folder, name, "model", revision, field="folder") for name in (CONFIG, WEIGHTS))
    except NotInRepository:
        raise UserError(f"folder={folder}: the repository has no {CONFIG}") from None
    return config, weights


def _card(content: Mapping[str, Any], size: int) -> str:
    temperature, base = TemperatureConfig.from_plain(content["temperature"]), content["base"]
    name = base["name"] if base["name"] and not Path(base["name"]).exists() else None  # an id on the Hub
    return f"""\
---
{f"base_model: {name}" if name else "# base_model: not on the Hub"}
library_name: ssa
tags: [selective-self-attention]
---

# Temperatures for {name or base["architecture"]}

Learned inverse temperatures, rule `{temperature.name}`, on: {", ".join(temperature.scaled)} of {len(content["layers"])}
attention layers; {size:,} numbers. The rule is Selective Self-Attention
([arXiv 2411.12892](https://arxiv.org/abs/2411.12892)) or one that it is compared with.

```python
import ssa
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({name or "BASE"!r})
ssa.load(model, FOLDER)
```
"""
