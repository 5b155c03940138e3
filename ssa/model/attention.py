"""Causal self-attention over `scaled_dot_product_attention`, with temperatures in front of it.

Letters: B batch, H heads, K key-value heads (K = H without grouping), T tokens, S tokens in sight of any query (T, and
those in the cache), d head_dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.model.config import ModelConfig
from ssa.model.kv_cache import LayerCache
from ssa.model.rotary import Rotation, rotate
from ssa.model.temperature import build_temperatures, scale
from ssa.model.temperature_terms import Shape, Tokens


class AttentionMetadata(NamedTuple):
    """Where a batch's tokens stand: the same for all layers."""

    visible_keys: Tensor  # n, the number of keys each query sees, (T,) or (B, T): its own and the n - 1 before it
    mask: Tensor | None  # what `visible` means for the keys in sight, (1 or B, 1, T, S); None where all before it
    rotation: Rotation | None
    log_frequency: Tensor | None  # (B, T), for the temperatures that read it


class AttentionInputs(NamedTuple):
    """What one layer's attention works on: enough to recompute its maps, and the temperatures that shaped them."""

    query: Tensor  # (B, H, T, d), scaled by its temperature, rotated
    key: Tensor  # (B, K, T, d), likewise
    visible_keys: Tensor  # (T,) or (B, T), number of keys each query can see
    temperatures: dict[str, Tensor]  # by "query", "key", "value", "output": float32, broadcastable to (B, H, T, d)


Observer = Callable[[AttentionInputs], None]


def causal_mask(visible_keys: Tensor, n_keys: int) -> Tensor:
    """True where a query sees a key: its own and the n - 1 before it.

    Args:
        visible_keys: n, (T,) or (B, T), of the last T of the keys.
        n_keys: S.

    Returns:
        (1 or B, 1, T, S), bool.
    """
    visible_keys = visible_keys.reshape(-1, 1, visible_keys.size(-1), 1)
    keys = torch.arange(n_keys, device=visible_keys.device)
    own = keys[n_keys - visible_keys.size(2) :, None]  # (T, 1)
    return (keys <= own) & (keys > own - visible_keys)


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention; SSA where ``config.temperature`` says so, vanilla where it is absent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.dropout = config.dropout
        inner = self.n_head * self.head_dim
        self.qkv = nn.Linear(config.d_model, inner + 2 * self.n_kv_head * self.head_dim, bias=config.qkv_bias)
        self.out = nn.Linear(inner, config.d_model, bias=config.out_bias)
        shape = Shape(self.n_head, self.head_dim, config.d_model)
        self.temperature = build_temperatures(config.temperature, shape, self.n_kv_head)

    def forward(
        self, x: Tensor, metadata: AttentionMetadata, cache: LayerCache | None = None, observe: Observer | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Args:
            x: normalized hidden states, (B, T, D).
            metadata: of the batch.
            cache: takes this layer's keys and values, and gives those of earlier tokens.
            observe: called with the `AttentionInputs` of this layer; without a cache alone.
        """
        tokens = Tokens(x, metadata.visible_keys, metadata.log_frequency)
        temperatures: dict[str, Tensor] = {}
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 K, T, d)
        projections = heads.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        query, key, value = (
            self._scaled(name, features, tokens, temperatures)
            for name, features in zip(("query", "key", "value"), projections, strict=True)
        )
        if metadata.rotation is not None:
            query, key = rotate(query, metadata.rotation), rotate(key, metadata.rotation)
        before = key
        if cache is not None:
            key, value = cache.append(key, value)
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=metadata.mask,
            is_causal=metadata.mask is None and x.size(1) > 1,  # of one query, all keys are its own or before it
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.n_kv_head != self.n_head,
        )  # (B, H, T, d)
        mixed = self._scaled("output", mixed, tokens, temperatures)
        if observe is not None:
            observe(AttentionInputs(query, before, metadata.visible_keys, temperatures))
        output: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return output

    def _scaled(self, name: str, features: Tensor, tokens: Tokens, record: dict[str, Tensor]) -> Tensor:
        """The features times their temperature, if they have one, which goes into ``record``."""
        if name not in self.temperature:
            return features
        record[name] = self.temperature[name](features, tokens)
        return scale(features, record[name])
