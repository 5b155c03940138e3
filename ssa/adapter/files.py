"""Saving the temperatures of an adapted model alone, and loading them onto its base.

A folder has ``ssa_adapter.json`` (the rule, the base model, the sizes), ``ssa_adapter.safetensors`` (float32 unless the
base is float64) and a model card.  Files of PEFT have other names, so that both fit into one folder.
"""

from __future__ import annotations

import json
import math
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
from ssa.adapter.config_json import VOLATILE
from ssa.adapter.layer import adapted_layers
from ssa.adapter.probe import vocabulary
from ssa.config import validated
from ssa.config_errors import shown
from ssa.errors import UserError, first_line
from ssa.files import expanded, hash_of, hash_of_bytes, hash_of_file, parse_json, to_json, write_atomic, writing
from ssa.hub_client import NotInRepository, download
from ssa.model.config import TemperatureConfig
from ssa.model.sharding import gathered
from ssa.rule_names import check_terms

CONFIG, WEIGHTS = "ssa_adapter.json", "ssa_adapter.safetensors"
_FORMAT = 1
_CARD = "---\nlibrary_name: ssa\n"  # how a model card of ours begins
_FREQUENCIES = "ssa_frequencies.log_frequency"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")  # which trainers set


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
    weights = save(_state(inner, state_dict), {"format": "pt"})
    content = {
        "format": _FORMAT,
        "temperature": found.temperature.plain(),
        "base": _base(inner),
        "layers": {name: layer.sizes() for name, layer in adapted_layers(inner).items()},
        "weights_hash": hash_of_bytes(weights),
    }
    folder = expanded(folder)
    with writing(f"folder={folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / WEIGHTS, weights)
        write_atomic(folder / CONFIG, to_json(content))
        card = folder / "README.md"
        if not card.exists() or card.read_text(encoding="utf-8").startswith(_CARD):
            write_atomic(card, _card(content, found.temperature))
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
    where = f"folder={folder}"
    config_file, weights_file = _files(folder, revision)
    temperature, content, tensors = _read(where, config_file, weights_file)
    inner, base = causal_lm(model), content["base"]
    ours = _base(inner)
    if base["model_type"] != ours["model_type"]:
        raise UserError(
            f"{where}: temperatures of a {base['model_type']} ({base['name']}); the model is a "
            f"{ours['model_type']} ({ours['name']})"
        )
    frequencies = tensors.pop(_FREQUENCIES, None)
    if frequencies is not None and len(frequencies) != vocabulary(inner):
        raise UserError(f"{where}: frequencies of {len(frequencies):,} tokens; the model has {vocabulary(inner):,}")
    add_temperatures(model, temperature, train=train, log_frequency=frequencies, expected=(where, content["layers"]))
    for name, layer in adapted_layers(inner).items():
        for key, parameter in layer.named_parameters():
            parameter.data.copy_(tensors[f"{name}.temperature.{key}"])
    if base.get("config_hash") != ours["config_hash"]:
        warnings.warn(
            f"{where}: trained on {base['name']} (revision {base['revision']}), whose config is not that of "
            f"{ours['name']}",
            stacklevel=2,
        )
    return model


def push_to_hub(model: Any, repo_id: str, **options: Any) -> str:
    """Save the temperatures of an adapted model into a repository on the Hub, which is made if it does not exist.

    Args:
        model: adapted.
        repo_id: ``ORG/NAME``.
        options: of `huggingface_hub.HfApi.upload_folder`, such as ``commit_message``; ``private`` for a new repository;
            ``token``.

    Returns:
        The address of the commit.

    Raises:
        UserError: the model has no temperatures.
        HfHubHTTPError: the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=options.pop("token", None))
    with tempfile.TemporaryDirectory() as folder:
        save_temperatures(model, folder)
        api.create_repo(repo_id, private=options.pop("private", None), exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **options))


def _state(model: PreTrainedModel, state_dict: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    layers = adapted_layers(model).items()
    names = [f"{name}.temperature.{key}" for name, layer in layers for key, _ in layer.named_parameters()]
    state = model.state_dict() if state_dict is None else state_dict
    named = {
        name: name if name in state else next((key for key in state if key.endswith(f".{name}")), None)
        for name in [*names, _FREQUENCIES]
    }
    if missing := [name for name in names if named[name] is None]:
        raise UserError(f"state_dict: has no {missing[0]}")
    return {name: gathered(state[key]).detach().cpu().contiguous() for name, key in named.items() if key is not None}


def _base(model: PreTrainedModel) -> dict[str, Any]:
    """What identifies a base model."""
    return {
        "name": model.config._name_or_path or None,
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "model_type": model.config.model_type,
        "config_hash": hash_of(json.loads(json.dumps(_lasting(model.config.to_dict()), default=str))),
    }


def _lasting(config: Any) -> Any:
    """A model's config without the keys that say nothing about what it computes."""
    if not isinstance(config, dict):
        return config
    return {key: _lasting(value) for key, value in config.items() if key not in (*VOLATILE, *_SPECIAL)}


def _read(where: str, config: Path, weights: Path) -> tuple[TemperatureConfig, dict[str, Any], dict[str, Tensor]]:
    """The rule, the contents of the config, and the tensors, which fit each other.

    Raises:
        UserError: a file is damaged, or of a later version.
    """
    content = parse_json(config.read_bytes(), f"{where}: {CONFIG}")
    if content.get("format") != _FORMAT:
        raise UserError(f"{where}: {CONFIG}: format={shown(content.get('format'))}; valid: {_FORMAT}")
    try:
        if hash_of_file(weights) != content["weights_hash"]:
            raise ValueError(f"{WEIGHTS} is not the one that was written with {CONFIG}")
        temperature = validated(TemperatureConfig, content["temperature"])
        check_terms(temperature)
        tensors = load_file(weights)
        sizes = {
            f"{name}.temperature.{key}": size for name, all_ in content["layers"].items() for key, size in all_.items()
        }
        if temperature.needs_frequencies:
            sizes[_FREQUENCIES] = list(tensors[_FREQUENCIES].shape[:1])
        if {name: list(tensor.shape) for name, tensor in tensors.items()} != sizes:
            raise ValueError(f"the tensors are not those that {CONFIG} lists")
        if lacking := {"name", "revision", "model_type", "config_hash"} - content["base"].keys():
            raise ValueError(f"base has no {min(lacking)}")
    except UserError as error:
        raise UserError(f"{where}: {CONFIG}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise UserError(f"{where}: damaged ({first_line(error)})") from None
    return temperature, content, tensors


def _files(folder: str | Path, revision: str | None) -> tuple[Path, Path]:
    if not isinstance(folder, str | Path):
        raise UserError(f"folder={shown(folder)}: valid: a folder, or an id of the Hub")
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


def _card(content: Mapping[str, Any], temperature: TemperatureConfig) -> str:
    base, layers = content["base"], content["layers"]
    name = base["name"] if base["name"] and not Path(base["name"]).exists() else None  # an id on the Hub
    size = sum(math.prod(shape) for sizes in layers.values() for shape in sizes.values())
    return f"""\
{_CARD}{f"base_model: {name}" if name else "# base_model: not on the Hub"}
tags: [selective-self-attention]
---

# Temperatures for {name or base["architecture"]}

Learned inverse temperatures, rule `{temperature.name}`, on: {", ".join(temperature.scaled)} of {len(layers)}
attention layers; {size:,} numbers. The rule is Selective Self-Attention
([arXiv 2411.12892](https://arxiv.org/abs/2411.12892)) or one that it is compared with.

```python
import ssa
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({name or "BASE"!r})
ssa.load(model, FOLDER)
```
"""
