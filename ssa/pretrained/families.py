"""Conversion of Hugging Face GPT-2, GPT-NeoX (Pythia) and Llama configs and weights, in both directions.

`FAMILIES` is the table.  Letters: H heads, K key-value heads, d head_dim.  torch is not imported, so that this is fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.model.config import ModelConfig
from ssa.pretrained.hf_config import HF_ACTIVATIONS, HFConfig, write_rope

if TYPE_CHECKING:
    from torch import Tensor

# Fields of `ModelConfig` that a pretrained model determines.
_LABELS = ("name", "size", "dropout", "temperature")
ARCHITECTURE = tuple(one.name for one in fields(ModelConfig) if one.name not in _LABELS)


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
    views: Callable[[Tensor], tuple[Tensor, ...]] = lambda parameter: (parameter,)

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


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """The tensors of a checkpoint.

    Attributes:
        model_type: as in config.json.
        architecture: class of the causal language model.
        head: tensor of the head, which may be stored even if it is tied to the embedding.
        prefix: of the base model's tensors; its own checkpoints omit it.
        tensor_aliases: names of tensors in some checkpoints -> the usual names.
        ignored_tensors: pattern for unused tensors in older checkpoints, without the prefix.
    """

    model_type: str
    architecture: str
    head: str = "lm_head.weight"
    prefix: str = ""
    tensor_aliases: Mapping[str, str] = field(default_factory=dict)
    ignored_tensors: str = ""

    def parameter(self, tensor: str) -> str:
        """The name in `Transformer` of a weight that one tensor holds; other tensors keep their names."""
        return tensor.removeprefix("model.")

    def config_key(self, field: str) -> str:
        """The key of config.json that holds a size, a field of `ModelConfig`."""
        return f"{self.model_type}.{field}"


@dataclass(frozen=True, kw_only=True)
class Family(CheckpointFormat):
    """A model family of transformers.

    Attributes:
        base_architecture: class of the model without its head.
        modules: all modules with parameters, the head last.
        sizes: fields of `ModelConfig` -> default and names in config.json; the first name is written.
        read: config.json, sizes -> other fields of `ModelConfig`.
        write: the inverse.
        tie_embeddings: default if config.json has none.
    """

    base_architecture: str
    modules: tuple[ModuleMapping, ...]
    sizes: Mapping[str, tuple[Any, ...]]
    read: Callable[[HFConfig, dict[str, Any]], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    tie_embeddings: bool = False

    def to_model(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """The fields in `ARCHITECTURE` from a config.json.

        Raises:
            UserError: `ModelConfig` cannot represent the model, or a value has the wrong type.
        """
        if hf.get("quantization_config"):
            raise UserError("config.json: quantization_config: quantized weights are not supported; valid: none")
        named = hf.get("architectures") or [self.architecture]
        if named not in ([self.architecture], [self.base_architecture]):
            valid = f"{self.architecture}, {self.base_architecture}"
            raise UserError(f"config.json: architectures={shown(named)}: not supported; valid: {valid}")
        config = HFConfig(hf)
        sizes = {field: config.count(*names) for field, names in self.sizes.items()}
        tie_embeddings = config.flag(self.tie_embeddings, "tie_word_embeddings")
        return {**_DEFAULTS, **sizes, "tie_embeddings": tie_embeddings, **self.read(config, sizes)}

    def parameter(self, tensor: str) -> str:
        name = tensor if tensor.startswith(self.prefix) else self.prefix + tensor
        for module in self.modules:
            pattern = re.escape(f"{module.names[0]}.weight").replace(r"\{\}", r"(\d+)")
            if len(module.names) == 1 and (match := re.fullmatch(pattern, name)):
                return f"{module.module}.weight".format(*match.groups())
        return tensor

    def config_key(self, field: str) -> str:
        return str(self.sizes[field][1]) if field in self.sizes else field

    def to_hf(self, model: ModelConfig, vocab_size: int) -> dict[str, Any]:
        """A config.json for transformers 4.56 to 5, without special token ids (null) and dtype.

        It is exact if `to_model` returns the same architecture, else the closest model in the family.
        """
        named = {"architectures": [self.architecture], "model_type": self.model_type}
        tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
        sizes = {names[1]: getattr(model, field) for field, names in self.sizes.items()} | {"vocab_size": vocab_size}
        return {**named, **tokens, "tie_word_embeddings": model.tie_embeddings, **sizes, **self.write(model)}

    def weight_mappings(self, model: ModelConfig) -> list[WeightMapping]:
        """Mappings of all parameters except temperatures, and except a head that is tied to the embedding."""
        modules = self.modules[:-1] if model.tie_embeddings else self.modules
        return [mapping for module in modules for mapping in module.weight_mappings(model)]


_DEFAULTS: dict[str, Any] = {  # fields that a family's `read` may override
    "n_kv_head": None,
    "head_dim": None,
    "positions": "rotary",
    "rotary_fraction": 1.0,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "norm": "layer",
    "gated_mlp": False,
    "parallel_residual": False,
    "qkv_bias": True,
    "out_bias": True,
    "mlp_bias": True,
}


def _read_gpt2(hf: HFConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    hf.must_be("scale_attn_weights", True)
    hf.must_be("scale_attn_by_inverse_layer_idx", False)
    hf.must_be("add_cross_attention", False)
    return {
        "positions": "learned",
        "norm_eps": hf.number(1e-5, "layer_norm_epsilon"),
        "activation": hf.activation("gelu_new", "activation_function"),
    }


def _write_gpt2(model: ModelConfig) -> dict[str, Any]:
    return {
        "layer_norm_epsilon": model.norm_eps,
        "activation_function": HF_ACTIVATIONS[model.activation],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout),
    }


def _write_rotary(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": HF_ACTIVATIONS[model.activation],
        "attention_bias": model.qkv_bias,
        "attention_dropout": model.dropout,
    }


def _read_neox(hf: HFConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    fraction = hf.rope.number(hf.number(0.25, "rotary_pct", "partial_rotary_factor"), "partial_rotary_factor")
    head_dim = sizes["d_model"] // sizes["n_head"]
    if int(head_dim * fraction) % 2:
        raise UserError(f"config.json: rotary_pct={fraction:g}: rotates an odd number of a head's {head_dim} features")
    bias = hf.flag(True, "attention_bias")
    return {
        "rope_scaling": hf.rope_scaling(sizes["max_positions"]),
        "activation": hf.activation("gelu", "hidden_act"),
        "rotary_fraction": fraction,
        "rope_theta": hf.rope.number(hf.number(10000.0, "rotary_emb_base", "rope_theta"), "rope_theta"),
        "norm_eps": hf.number(1e-5, "layer_norm_eps"),
        "parallel_residual": hf.flag(True, "use_parallel_residual"),
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _write_neox(model: ModelConfig) -> dict[str, Any]:
    fraction = model.rotary_fraction
    if int(model.head_dim * fraction) % 2:  # ours rotates one fewer than an odd number
        fraction = (model.d_rotary + 0.5) / model.head_dim
    return {
        **_write_rotary(model),
        **write_rope(model, {"partial_rotary_factor": fraction}),
        "rotary_pct": fraction,
        "rotary_emb_base": model.rope_theta,
        "layer_norm_eps": model.norm_eps,
        "use_parallel_residual": model.parallel_residual,
        "hidden_dropout": model.dropout,
    }


def _read_llama(hf: HFConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    hf.must_be("partial_rotary_factor", 1.0)
    hf.rope.must_be("partial_rotary_factor", 1.0)
    attention_bias = hf.flag(False, "attention_bias")
    return {
        "rope_scaling": hf.rope_scaling(sizes["max_positions"]),
        "activation": hf.activation("silu", "hidden_act"),
        "rope_theta": hf.rope.number(hf.number(10000.0, "rope_theta"), "rope_theta"),
        "norm": "rms",
        "norm_eps": hf.number(1e-6, "rms_norm_eps"),
        "gated_mlp": True,
        "qkv_bias": attention_bias,
        "out_bias": attention_bias,
        "mlp_bias": hf.flag(False, "mlp_bias"),
    }


def _write_llama(model: ModelConfig) -> dict[str, Any]:
    return {
        **_write_rotary(model),
        **write_rope(model, {}),
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "mlp_bias": model.mlp_bias,
    }


GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    base_architecture="GPT2Model",
    prefix="transformer.",
    ignored_tensors=r"h\.\d+\.attn\.(bias|masked_bias)",  # causal masks
    modules=(
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
    ),
    sizes={
        "vocab_size": (50257, "vocab_size"),
        "n_layer": (12, "n_layer", "num_hidden_layers"),
        "n_head": (12, "n_head", "num_attention_heads"),
        "d_model": (768, "n_embd", "hidden_size"),
        "d_ff": (None, "n_inner"),
        "max_positions": (1024, "n_positions", "max_position_embeddings"),
    },
    read=_read_gpt2,
    write=_write_gpt2,
    tie_embeddings=True,
)
GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    base_architecture="GPTNeoXModel",
    head="embed_out.weight",
    prefix="gpt_neox.",
    tensor_aliases={"lm_head.weight": "embed_out.weight"},
    ignored_tensors=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq",
    modules=(
        ModuleMapping("token_embedding", ("gpt_neox.embed_in",)),
        ModuleMapping("blocks.{}.attention_norm", ("gpt_neox.layers.{}.input_layernorm",)),
        ModuleMapping("blocks.{}.attention.qkv", ("gpt_neox.layers.{}.attention.query_key_value",), _interleaved_qkv),
        ModuleMapping("blocks.{}.attention.out", ("gpt_neox.layers.{}.attention.dense",)),
        ModuleMapping("blocks.{}.mlp_norm", ("gpt_neox.layers.{}.post_attention_layernorm",)),
        ModuleMapping("blocks.{}.mlp.up", ("gpt_neox.layers.{}.mlp.dense_h_to_4h",)),
        ModuleMapping("blocks.{}.mlp.down", ("gpt_neox.layers.{}.mlp.dense_4h_to_h",)),
        ModuleMapping("final_norm", ("gpt_neox.final_layer_norm",)),
        ModuleMapping("head", ("embed_out",)),
    ),
    sizes={
        "vocab_size": (50432, "vocab_size"),
        "n_layer": (44, "num_hidden_layers"),
        "n_head": (64, "num_attention_heads"),
        "d_model": (6144, "hidden_size"),
        "d_ff": (24576, "intermediate_size"),
        "max_positions": (2048, "max_position_embeddings"),
    },
    read=_read_neox,
    write=_write_neox,
)
_LLAMA_QKV = tuple(f"model.layers.{{}}.self_attn.{name}_proj" for name in ("q", "k", "v"))
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base_architecture="LlamaModel",
    prefix="model.",
    ignored_tensors=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    modules=(
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
    ),
    sizes={
        "vocab_size": (32000, "vocab_size"),
        "n_layer": (32, "num_hidden_layers"),
        "n_head": (32, "num_attention_heads"),
        "n_kv_head": (None, "num_key_value_heads"),
        "head_dim": (None, "head_dim"),
        "d_model": (4096, "hidden_size"),
        "d_ff": (11008, "intermediate_size"),
        "max_positions": (2048, "max_position_embeddings"),
    },
    read=_read_llama,
    write=_write_llama,
)
FAMILIES = (GPT2, GPT_NEOX, LLAMA)
