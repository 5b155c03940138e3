"""Our parameters and the tensors of a file that hold them: each a view of the other.

Letters: H heads, K key-value heads, d head_dim.  Nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssa.model.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

Views = Callable[["Tensor"], "tuple[Tensor, ...]"]


def whole(ours: Tensor) -> tuple[Tensor, ...]:
    """Theirs is ours."""
    return (ours,)


@dataclass(frozen=True)
class Correspondence:
    """One of our parameters, and the tensors that hold it in a file.

    ``views`` gives views into ours, one for each of ``theirs``, with the same elements in the same order.  A view may
    spread their first dimension over several.
    """

    ours: str
    theirs: tuple[str, ...]
    views: Views = whole

    def to_theirs(self, ours: Tensor) -> dict[str, Tensor]:
        """Each of theirs, from ours; most are views into it.  On the meta device: their shapes."""
        flat = (view.flatten(0, view.ndim - ours.ndim) for view in self.views(ours))
        return dict(zip(self.theirs, flat, strict=True))


@dataclass(frozen=True)
class Module:
    """One of our modules and theirs; ``{}`` is the layer's number."""

    ours: str
    theirs: tuple[str, ...]
    views: Callable[[ModelConfig], Views] = lambda model: whole

    def parameters(self, model: ModelConfig) -> list[Correspondence]:
        """Its weights and biases, in all layers."""
        kinds = ["weight", "bias"] if _has_bias(model, self.ours) else ["weight"]
        found = []
        for layer in range(model.n_layer if "{}" in self.ours else 1):
            for kind in kinds:
                ours, *theirs = (f"{name.format(layer)}.{kind}" for name in (self.ours, *self.theirs))
                found.append(Correspondence(ours, tuple(theirs), self.views(model)))
        return found


def _has_bias(model: ModelConfig, module: str) -> bool:
    norm, mlp = model.norm == "layer", model.mlp_bias
    biased = {"attention_norm": norm, "mlp_norm": norm, "final_norm": norm, "gate": mlp, "up": mlp, "down": mlp}
    return {**biased, "qkv": model.qkv_bias, "out": model.out_bias}.get(module.rpartition(".")[2], False)


def _transposed(model: ModelConfig) -> Views:
    """Linear weights in GPT-2's files are (in, out).  A bias stays as it is."""
    return lambda ours: (ours.t(),)


def _apart(model: ModelConfig) -> Views:
    """Llama's query, key and value projections are three tensors."""
    query, key = model.n_head * model.head_dim, model.n_kv_head * model.head_dim

    def views(ours: Tensor) -> tuple[Tensor, ...]:
        return ours[:query], ours[query : query + key], ours[query + key :]

    return views


def _interleaved(model: ModelConfig) -> Views:
    """GPT-NeoX has each head's query, key and value together: (H, 3, d, ...) to our (3, H, d, ...)."""
    return lambda ours: (ours.view(3, model.n_head, -1, *ours.shape[1:]).transpose(0, 1),)


GPT2_MODULES = (
    Module("token_embedding", ("transformer.wte",)),
    Module("position_embedding", ("transformer.wpe",)),
    Module("blocks.{}.attention_norm", ("transformer.h.{}.ln_1",)),
    Module("blocks.{}.attention.qkv", ("transformer.h.{}.attn.c_attn",), _transposed),
    Module("blocks.{}.attention.out", ("transformer.h.{}.attn.c_proj",), _transposed),
    Module("blocks.{}.mlp_norm", ("transformer.h.{}.ln_2",)),
    Module("blocks.{}.mlp.up", ("transformer.h.{}.mlp.c_fc",), _transposed),
    Module("blocks.{}.mlp.down", ("transformer.h.{}.mlp.c_proj",), _transposed),
    Module("final_norm", ("transformer.ln_f",)),
    Module("head", ("lm_head",)),
)
GPT_NEOX_MODULES = (
    Module("token_embedding", ("gpt_neox.embed_in",)),
    Module("blocks.{}.attention_norm", ("gpt_neox.layers.{}.input_layernorm",)),
    Module("blocks.{}.attention.qkv", ("gpt_neox.layers.{}.attention.query_key_value",), _interleaved),
    Module("blocks.{}.attention.out", ("gpt_neox.layers.{}.attention.dense",)),
    Module("blocks.{}.mlp_norm", ("gpt_neox.layers.{}.post_attention_layernorm",)),
    Module("blocks.{}.mlp.up", ("gpt_neox.layers.{}.mlp.dense_h_to_4h",)),
    Module("blocks.{}.mlp.down", ("gpt_neox.layers.{}.mlp.dense_4h_to_h",)),
    Module("final_norm", ("gpt_neox.final_layer_norm",)),
    Module("head", ("embed_out",)),
)
LLAMA_MODULES = (
    Module("token_embedding", ("model.embed_tokens",)),
    Module("blocks.{}.attention_norm", ("model.layers.{}.input_layernorm",)),
    Module(
        "blocks.{}.attention.qkv",
        tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in ("q", "k", "v")),
        _apart,
    ),
    Module("blocks.{}.attention.out", ("model.layers.{}.self_attn.o_proj",)),
    Module("blocks.{}.mlp_norm", ("model.layers.{}.post_attention_layernorm",)),
    Module("blocks.{}.mlp.gate", ("model.layers.{}.mlp.gate_proj",)),
    Module("blocks.{}.mlp.up", ("model.layers.{}.mlp.up_proj",)),
    Module("blocks.{}.mlp.down", ("model.layers.{}.mlp.down_proj",)),
    Module("final_norm", ("model.norm",)),
    Module("head", ("lm_head",)),
)
