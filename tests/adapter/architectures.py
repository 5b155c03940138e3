"""Tiny random models of all causal language models that the installed transformers has."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 120
_LARGEST = 3_000_000  # parameters
# Small values of the size parameters of all config classes.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "embedding_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_dim", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), 128),
    "head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "rotary_dim": 4,
    "sliding_window": 6,
    "first_k_dense_replace": 1,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "pad_token_id": 0,
}
_DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout_prob")
# Where those are not enough.
_MLA = {"num_key_value_heads": 4, "head_dim": 4}  # of the rotated part
_WITH_MLA = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa")
_HEAD_DIM = {"head_dim": 8}
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
_WITH_HYBRID = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid", "qwen4_exp_text")
_DECODER = {"is_decoder": True}
_BERTS = ("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert")
_ROBERTAS = ("roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod")
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys((*_WITH_MLA, "longcat_flash", "minicpm3", "sarvam_mla", "youtu"), _MLA),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEAD_DIM),
    **dict.fromkeys(_WITH_HYBRID, _HYBRID),
    **dict.fromkeys((*_BERTS, *_ROBERTAS, "reformer", "big_bird", "prophetnet"), _DECODER),
    "bamba": {"attn_layer_indices": [1]},
    "bailing_hybrid": {"layer_group_size": 2},
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.0, 0.0],
        "intermediate_size": [64, 64],
    },
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {**_MLA, "num_layers": 2},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "zamba": {"layer_types": ["mamba", "hybrid"]},
}


def tiny_config(model_type: str) -> PretrainedConfig:
    """A config of this type with small sizes."""
    made = AutoConfig.for_model(model_type)
    parts = made.sub_configs
    if parts and "text_config" in parts:
        text = parts["text_config"]
        kind = text if text is not AutoConfig else type(made.text_config)
        made = type(made)(text_config=_shrunk(kind, _OWN.get(kind.model_type, {})).to_dict())
        return made
    return _shrunk(type(made), _OWN.get(model_type, {}))


def _shrunk(kind: Any, own: dict[str, Any]) -> PretrainedConfig:
    default = kind()
    values = {name: value for name, value in _SIZES.items() if _value(default, name) is not None}
    known = set(inspect.signature(kind.__init__).parameters) | {*default.to_dict()}
    values |= {name: 0.0 for name in _DROPOUTS if name in known}
    values = {name: value for name, value in values.items() if name in known or name in default.attribute_map}
    return kind(**{**values, **own})


def _value(config: PretrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # a size that layers may have each for itself
        return None


def tiny_model(model_type: str, **options: Any) -> Any:
    """A model of this type with small sizes and random weights, in evaluation mode; options: of ``from_config``.

    Raises:
        ValueError: it would be large.
    """
    config = tiny_config(model_type)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > _LARGEST:
        raise ValueError(f"{size:,} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, **options).eval()
