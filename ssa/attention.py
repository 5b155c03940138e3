"""Causal self-attention over `scaled_dot_product_attention`, with temperatures in front of it.

Letters: B batch, H heads, T tokens, d head_dim, D width = H d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ssa.config import ModelConfig
from ssa.temperature import PROJECTIONS, build_temperatures, scale


class AttentionInputs(NamedTuple):
    """What one layer's attention works on: enough to recompute its maps, and the temperatures that shaped them."""

    query: Tensor  # (B, H, T, d), scaled by its temperature
    key: Tensor  # (B, H, T, d), likewise
    visible: Tensor  # (T,) number of keys each query can see
    temperatures: dict[str, Tensor]  # by "query", "key", "value": float32, broadcastable to (B, H, T, 1)


Observer = Callable[[AttentionInputs], None]


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention; SSA where ``config.temperature`` says so, vanilla where it is absent."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head, self.head_dim = config.n_head, config.width // config.n_head
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.temperature = build_temperatures(config.temperature, self.n_head, self.head_dim)

    def forward(self, x: Tensor, visible: Tensor, observe: Observer | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D).

        Args:
            x: hidden states, (B, T, D).
            visible: the number of keys each query can see, (T,).
            observe: called with the `AttentionInputs` of this layer.
        """
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.n_head, self.head_dim)
        features = dict(zip(PROJECTIONS, qkv.permute(2, 0, 3, 1, 4).unbind(0), strict=True))  # each (B, H, T, d)
        temperatures = {name: tau(features[name], visible) for name, tau in self.temperature.items()}
        for name, tau in temperatures.items():
            features[name] = scale(features[name], tau)
        query, key, value = features.values()
        if observe is not None:
            observe(AttentionInputs(query, key, visible, temperatures))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)  # (B, H, T, d)
        output: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))  # (B, T, D)
        return output
