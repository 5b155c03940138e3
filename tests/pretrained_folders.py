"""Small pretrained models in Hugging Face's format, written without transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ssa.model.config import ModelConfig, TemperatureConfig, Terms
from ssa.model.transformer import Transformer
from ssa.pretrained.families import FAMILIES

VOCAB = 600
BOTH = Terms(token="shared", position="log")
SSA = TemperatureConfig(name="ssa", query=BOTH, value=BOTH)
_LLAMA = {"positions": "rotary", "norm": "rms", "activation": "silu", "gated_mlp": True, "n_kv_head": 2}
_NO_BIAS = {"qkv_bias": False, "out_bias": False, "mlp_bias": False, "tie_embeddings": False}
FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt_neox": {"positions": "rotary", "rotary_fraction": 0.5, "parallel_residual": True, "tie_embeddings": False},
    "llama": {**_LLAMA, **_NO_BIAS},
}


def small(model_type: str, temperature: TemperatureConfig = TemperatureConfig(), **fields: Any) -> ModelConfig:  # noqa: B008
    """A model that the class of this model_type has, and a temperature."""
    sizes = {"n_layer": 2, "n_head": 4, "d_model": 32, "max_positions": 64, "vocab_size": VOCAB}
    values = {"name": "test", "size": "test", **sizes, **FIELDS[model_type], **fields}
    return ModelConfig(**values, temperature=temperature)


def write_model(folder: Path, model_type: str, seed: int = 0, **fields: Any) -> Transformer:
    """Write a model with random weights as transformers would, and return it."""
    family = next(family for family in FAMILIES if family.model_type == model_type)
    config = small(model_type, **fields)
    model = Transformer(config, seed=seed)
    tensors: dict[str, torch.Tensor] = {}
    for mapping in family.weight_mappings(config):
        tensors |= mapping.to_tensors(model.state_dict()[mapping.parameter])
    write_files(folder, family.to_hf(config, VOCAB), tensors)
    return model


def write_export(folder: Path, config: ModelConfig, seed: int = 0) -> Transformer:
    """Write a model in this project's own format, temperatures away from their start values, and return it."""
    model = Transformer(config, seed=seed)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if ".temperature." in name or name.endswith("log_frequency"):
            tensor.normal_(generator=generator)
    if config.tie_embeddings:
        del tensors["model.head.weight"]
    described = {"model_type": "ssa", "vocab_size": VOCAB, "ssa": config.plain()}
    write_files(folder, described, tensors)
    return model


def write_files(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """A folder with config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def overflowing(folder: Path) -> None:
    """Enlarge the weights of its MLPs: they stay finite, but activations become NaN."""
    tensors = {name: tensor * (1e30 if "mlp" in name else 1) for name, tensor in tensors_of(folder).items()}
    save_file(tensors, folder / "model.safetensors")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors in its checkpoint."""
    return load_file(folder / "model.safetensors")


def ids(length: int = 24) -> torch.Tensor:
    """Two sequences."""
    return torch.randint(0, VOCAB, (2, length), generator=torch.Generator().manual_seed(3))
