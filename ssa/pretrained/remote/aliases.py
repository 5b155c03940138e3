"""Model sizes under Hugging Face names."""

from __future__ import annotations

from typing import Any

from ssa.model.config import ModelConfig


def aliases(config: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """Keys of config.json that follow from the model."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
    }
