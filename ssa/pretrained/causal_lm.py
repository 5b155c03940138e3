"""Any causal language model of transformers, as described by its config.json.

transformers, which takes seconds, is imported for such a model only.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

from ssa.config_errors import shown
from ssa.errors import UserError, first_line
from ssa.paths import install

OPTION = "hf"  # of ``model=``
_POSITIONS = 2048  # where the config does not say how many
_SIZES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "d_model": "hidden_size",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
}


def check_available(subject: str, otherwise: str = "") -> None:
    """Refuse a model of transformers where that is not installed.

    Raises:
        UserError: begins with ``subject``, ends with ``otherwise``.
    """
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f"{subject}: needs transformers: {install('adapter')}{otherwise}")


def fields_of(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` in a config.json.

    Raises:
        UserError: it describes no causal language model that the installed transformers has, or a quantized one.
    """
    model_type = hf.get("model_type")
    if hf.get("quantization_config"):
        raise UserError("config.json: quantization_config: quantized weights are not trained here; valid: none")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from ssa.adapter.config_json import VOLATILE, config_of

    if not isinstance(model_type, str) or model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"config.json: model_type={shown(model_type)}: no causal language model of the installed transformers"
        )
    text = json.dumps({key: hf[key] for key in sorted(hf) if key not in VOLATILE})
    try:
        config = config_of(text)
    except Exception as error:  # of any kind: the classes check in many ways
        raise UserError(f"config.json: not valid for {model_type} ({first_line(error)})") from None
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"config.json: model_type={model_type}: an encoder-decoder; valid: a causal language model")
    language: Any = config.get_text_config()
    sizes = {field: _value(language, name) for field, name in _SIZES.items()}
    positions = _value(language, "max_position_embeddings")
    if lacking := [_SIZES[field] for field in ("n_layer", "n_head", "d_model", "vocab_size") if not sizes[field]]:
        raise UserError(f"config.json: {lacking[0]}: not set, of a {model_type}")
    return {
        **sizes,
        "max_positions": positions if isinstance(positions, int) and positions > 0 else _POSITIONS,
        "positions": "rotary" if _value(language, "rope_parameters") else "learned",
        "tie_embeddings": bool(_value(language, "tie_word_embeddings")),
        "hf_config": text,
    }


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # of any kind: a size that each layer has for itself
        return None
