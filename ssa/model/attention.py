"""Causal self-attention over `scaled_dot_product_attention`, with temperatures in front of it.

Letters: B batch, H heads, K key-value heads (K = H without grouping), T tokens, S tokens in sight of any query (T plus
those in the cache), d head_dim, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from ssa.model.config import PROJECTIONS, ModelConfig
from ssa.model.dropout import Dropout
from ssa.model.flex import attend_in_blocks
from ssa.model.kv_cache import LayerCache
from ssa.model.rotary import Rotation, rotate
from ssa.model.temperature import build_temperatures, scale
from ssa.model.temperature_rules import Shape, Tokens


class AttentionMetadata(NamedTuple):
    """Mask, positions, rotation and dropout seeds of a batch, shared by all layers."""

    visible_keys: Tensor  # n, the number of keys each query sees, (T,) or (B, T): its own and the n - 1 before it
    # where a query sees a key: True in (1 or B, 1, T, S), or FlexAttention's form; None: the kernel's causal mask
    mask: Tensor | BlockMask | None
    rotation: Rotation | None
    log_frequency: Tensor | None  # (B, T), for the temperatures that read it
    dropout_seeds: Tensor | None = None  # (B, sites), see `Dropout`


class AttentionInputs(NamedTuple):
    """Inputs of one layer's attention, from which its maps can be recomputed, and the temperatures applied to them."""

    query: Tensor  # (B, H, T, d), scaled by its temperature, rotated
    key: Tensor  # (B, K, T, d), scaled and rotated
    visible_keys: Tensor  # (T,) or (B, T), number of keys each query sees
    temperatures: dict[str, Tensor]  # by projection: float32, broadcastable to (B, H, T, d)
    softcap: float | None = None  # c, if its logits s become c tanh(s / c), as in Gemma 2
    unmeasured: str | None = None  # why its rows are no softmax over the visible keys alone


Observer = Callable[[AttentionInputs], None]


def causal_mask(visible_keys: Tensor, n_keys: int) -> Tensor:
    """True where a query sees a key: its own and the n - 1 before it, (1 or B, 1, T, S).

    ``visible_keys``: n for the last T of the S keys, (T,) or (B, T).
    """
    visible_keys = visible_keys.reshape(-1, 1, visible_keys.size(-1), 1)
    keys = torch.arange(n_keys, device=visible_keys.device)
    own = keys[n_keys - visible_keys.size(2) :, None]  # (T, 1)
    return (keys <= own) & (keys > own - visible_keys)


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention with the temperatures in ``config.temperature``; without any, vanilla attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.dropout = Dropout(config.dropout)
        inner = self.n_head * self.head_dim
        self.qkv = nn.Linear(config.d_model, inner + 2 * self.n_kv_head * self.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(inner, config.d_model, bias=config.out_bias)
        shape = Shape(self.n_head, self.head_dim, config.d_model)
        self.temperature = build_temperatures(config.temperature, shape, self.n_kv_head)

    def forward(
        self, x: Tensor, metadata: AttentionMetadata, cache: LayerCache | None = None, observe: Observer | None = None
    ) -> Tensor:
        """Normalized hidden states (B, T, D) -> (B, T, D).

        ``cache``: this layer's earlier keys and values; the new ones are appended.  ``observe`` does not support one.
        """
        tokens = Tokens(x, metadata.visible_keys, metadata.log_frequency)
        temperatures: dict[str, Tensor] = {}
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H + 2 K, d)
        projections = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=2)
        query, key, value = (
            self._scaled(name, features, tokens, temperatures).transpose(1, 2)
            for name, features in zip(PROJECTIONS[:3], projections, strict=True)
        )
        if metadata.rotation is not None:
            query, key = rotate(query, metadata.rotation), rotate(key, metadata.rotation)
        new_key = key
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = self._attend(query, key, value, metadata).transpose(1, 2)  # (B, T, H, d)
        mixed = self._scaled("output", mixed, tokens, temperatures)
        if observe is not None:
            observe(AttentionInputs(query, new_key, metadata.visible_keys, temperatures))
        output: Tensor = self.out(mixed.flatten(2))  # (B, T, D)
        return output

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, metadata: AttentionMetadata) -> Tensor:
        """(B, H, T, d), (B, K, S, d), (B, K, S, d) -> (B, H, T, d)."""
        mask = metadata.mask
        if isinstance(mask, BlockMask):
            return attend_in_blocks(query, key, value, mask)
        options = {
            "is_causal": mask is None and query.size(2) > 1,  # a single query sees all keys
            "enable_gqa": self.n_kv_head != self.n_head,
        }
        attend = F.scaled_dot_product_attention
        if not self.dropout.active:
            return attend(query, key, value, mask, **options)
        if mask is not None:
            mask = mask.expand(len(query), -1, -1, -1)
        dropped: Tensor = self.dropout.seeded(
            attend, metadata.dropout_seeds, query, key, value, mask, dropout_p=self.dropout.p, **options
        )
        return dropped

    def _scaled(self, name: str, features: Tensor, tokens: Tokens, record: dict[str, Tensor]) -> Tensor:
        """Multiplies features (B, T, H, d) by their temperature, if any, and records it."""
        temperature: Tensor | None = self.temperature(name, features, tokens)
        if temperature is None:
            return features
        record[name] = temperature.transpose(1, 2)
        return scale(features, temperature)
