"""Mapping between a `Transformer`'s parameters and the tensors of Hugging Face checkpoints.

Letters: H heads, K key-value heads, d head_dim.  torch is not imported, so that this is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ssa.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Views = Callable[["Tensor"], "tuple[Tensor, ...]"]


@dataclass(frozen=True)
class WeightMapping:
    """A parameter and the checkpoint tensors that hold its values.

    Attributes:
        parameter: its name in `Transformer`.
        tensors: names in the checkpoint.
        views: parameter -> one view per tensor, with the same elements in the same order.  A view may split the
            tensor's first dimension into several.
    """

    parameter: str
    tensors: tuple[str, ...]
    views: Views = lambda parameter: (parameter,)

    def to_tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        """The checkpoint tensors by name, mostly views into the parameter.  On the meta device: their shapes."""
        flat = (view.flatten(0, view.ndim - parameter.ndim) for view in self.views(parameter))
        return dict(zip(self.tensors, flat, strict=True))


@dataclass(frozen=True)
class ModuleMapping:
    """A module of `Transformer` and its names in checkpoints; ``{}`` stands for the layer index."""

    module: str
    names: tuple[str, ...]
    views: Callable[[ModelConfig, Tensor], tuple[Tensor, ...]] = lambda model, parameter: (parameter,)

    def weight_mappings(self, model: ModelConfig) -> list[WeightMapping]:
        """Mappings of its weights and biases, in all layers."""
        kinds = ["weight", "bias"] if _has_bias(model, self.module) else ["weight"]
        found = []
        for layer in range(model.n_layer if "{}" in self.module else 1):
            for kind in kinds:
                parameter, *tensors = (f"{name.format(layer)}.{kind}" for name in (self.module, *self.names))
                found.append(WeightMapping(parameter, tuple(tensors), partial(self.views, model)))
        return found


def _has_bias(model: ModelConfig, module: str) -> bool:
    norm, mlp = model.norm == "layer", model.mlp_bias
    biased = {"attention_norm": norm, "mlp_norm": norm, "final_norm": norm, "gate": mlp, "up": mlp, "down": mlp}
    return {**biased, "qkv": model.qkv_bias, "out": model.out_bias}.get(module.rpartition(".")[2], False)


def _transposed(model: ModelConfig, parameter: Tensor) -> tuple[Tensor, ...]:
    """GPT-2 checkpoints store linear weights as (in, out); biases are unchanged."""
    return (parameter.t(),)


def _split_qkv(model: ModelConfig, parameter: Tensor) -> tuple[Tensor, ...]:
    """Llama checkpoints store the query, key and value projections as three tensors."""
    query, key = model.n_head * model.head_dim, model.n_kv_head * model.head_dim
    return parameter[:query], parameter[query : query + key], parameter[query + key :]


def _interleaved_qkv(model: ModelConfig, parameter: Tensor) -> tuple[Tensor, ...]:
    """GPT-NeoX checkpoints interleave query, key and value by head: (H, 3, d, ...) for our (3, H, d, ...)."""
    return (parameter.view(3, model.n_head, -1, *parameter.shape[1:]).transpose(0, 1),)


GPT2_MODULES = (
    ModuleMapping("token_embedding", ("transformer.wte",)),
    ModuleMapping("position_embedding", ("transformer.wpe",)),
    ModuleMapping("blocks.{}.attention_norm", ("transformer.h.{}.ln_1",)),
    ModuleMapping("blocks.{}.attention.qkv", ("transformer.h.{}.attn.c_attn",), _transposed),
    ModuleMapping("blocks.{}.attention.out", ("transformer.h.{}.attn.c_proj",), _transposed),
    ModuleMapping("blocks.{}.mlp_norm", ("transformer.h.{}.ln_2",)),
    ModuleMapping("blocks.{}.mlp.up", ("transformer.h.{}.mlp.c_fc",), _transposed),
    ModuleMapping("blocks.{}.mlp.down", ("transformer.h.{}.mlp.c_proj",), _transposed),
    ModuleMapping("final_norm", ("transformer.ln_f",)),
    ModuleMapping("head", ("lm_head",)),
)
GPT_NEOX_MODULES = (
    ModuleMapping("token_embedding", ("gpt_neox.embed_in",)),
    ModuleMapping("blocks.{}.attention_norm", ("gpt_neox.layers.{}.input_layernorm",)),
    ModuleMapping("blocks.{}.attention.qkv", ("gpt_neox.layers.{}.attention.query_key_value",), _interleaved_qkv),
    ModuleMapping("blocks.{}.attention.out", ("gpt_neox.layers.{}.attention.dense",)),
    ModuleMapping("blocks.{}.mlp_norm", ("gpt_neox.layers.{}.post_attention_layernorm",)),
    ModuleMapping("blocks.{}.mlp.up", ("gpt_neox.layers.{}.mlp.dense_h_to_4h",)),
    ModuleMapping("blocks.{}.mlp.down", ("gpt_neox.layers.{}.mlp.dense_4h_to_h",)),
    ModuleMapping("final_norm", ("gpt_neox.final_layer_norm",)),
    ModuleMapping("head", ("embed_out",)),
)
_LLAMA_QKV = tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in ("q", "k", "v"))
LLAMA_MODULES = (
    ModuleMapping("token_embedding", ("model.embed_tokens",)),
    ModuleMapping("blocks.{}.attention_norm", ("model.layers.{}.input_layernorm",)),
    ModuleMapping("blocks.{}.attention.qkv", _LLAMA_QKV, _split_qkv),
    ModuleMapping("blocks.{}.attention.out", ("model.layers.{}.self_attn.o_proj",)),
    ModuleMapping("blocks.{}.mlp_norm", ("model.layers.{}.post_attention_layernorm",)),
    ModuleMapping("blocks.{}.mlp.gate", ("model.layers.{}.mlp.gate_proj",)),
    ModuleMapping("blocks.{}.mlp.up", ("model.layers.{}.mlp.up_proj",)),
    ModuleMapping("blocks.{}.mlp.down", ("model.layers.{}.mlp.down_proj",)),
    ModuleMapping("final_norm", ("model.norm",)),
    ModuleMapping("head", ("lm_head",)),
)
