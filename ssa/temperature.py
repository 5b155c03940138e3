"""Inverse temperatures: the paper's idea.  Selective Self-Attention, arXiv 2411.12892, section 3.

In this project *temperature* always means the *inverse* temperature tau that multiplies a query, key or value:

    q_i <- tau_q(x_i, i) q_i        k_j <- tau_k(x_j, j) k_j        v_j <- tau_v(x_j, j) v_j
    tau(x, n) = tau_tok(x) + tau_pos(n)
    tau_tok(x) = tanh(w . gelu(W x))              W: the projection the layer already has ("weight sharing")
    tau_pos(n) = 1 + sigmoid(alpha) log(n)        n = 1, 2, ... = the number of keys the query can see

A larger tau_q makes the attention map of that query spikier; a tau_v near 0 mutes a token.  Only the vectors w and
the scalars alpha are new.  Both parts are written as deviations from 1, the identity, so that either can be absent.

Letters: B batch, H heads, T tokens, d head_dim.  Everything here is in the parameters' dtype, float32, also under bf16
autocast: near the identity a bf16 temperature takes only a few values over 2,048 positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.config import ScalarTemperature, TemperatureConfig

PROJECTIONS = ("query", "key", "value")


class TokenPart(nn.Module):
    """``tau_tok(x) = tanh(w . gelu(W x))``, weight-shared: it reads ``W x``, the query, key or value itself.

    ``w = 0`` at the start: the identity, exactly, and the gradient of ``w`` is not zero there.

    Args:
        n_head: heads H.
        head_dim: features of a head, d.
        per_head: one vector ``w`` a head (H x d parameters), or one temperature for the whole layer, from a ``w``
            over all heads' features (as many parameters).
    """

    def __init__(self, n_head: int, head_dim: int, per_head: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_head, head_dim))  # (H, d)
        self.per_head = per_head

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """(B, H, T, d) features -> (B, H, T, 1), or (B, 1, T, 1) for a whole layer."""
        precise = features.to(self.weight.dtype)
        score = F.gelu(precise) @ self.weight.unsqueeze(-1)  # (B, H, T, 1)
        return torch.tanh(score if self.per_head else score.sum(dim=1, keepdim=True))


class PositionPart(nn.Module):
    """``tau_pos(n) - 1 = sigmoid(alpha) log(n)``: longer contexts get spikier maps, against attention dilution.

    The identity is ``alpha = -inf``.  ``alpha_init = -4.5`` is a slope of 0.011, where the authors' released GPT-2
    code starts (``exp(-exp(1.5)) = 0.0113``): tau is at most 1.077 at n = 1,024.

    Args:
        n_head: heads H.
        per_head: one ``alpha`` a head, or one a layer.
        alpha_init: start value of ``alpha``.
    """

    def __init__(self, n_head: int, per_head: bool, alpha_init: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((n_head if per_head else 1,), alpha_init))  # (H,) or (1,)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """(T,) or (B, T) numbers of visible keys -> (1, H, T, 1) or (B, H, T, 1); H = 1 for a whole layer."""
        log_n = visible.to(self.alpha.dtype).log().reshape(-1, 1, visible.size(-1), 1)  # (1 or B, 1, T, 1)
        return torch.sigmoid(self.alpha)[:, None, None] * log_n


class Temperature(nn.Module):
    """The inverse temperature of one of query, key, value: 1 + the deviations of its parts."""

    def __init__(self, config: ScalarTemperature, n_head: int, head_dim: int, per: str, alpha_init: float) -> None:
        super().__init__()
        per_head = per == "head"
        self.parts = nn.ModuleDict()
        if config.token == "shared":
            self.parts["token"] = TokenPart(n_head, head_dim, per_head)
        if config.position == "log":
            self.parts["position"] = PositionPart(n_head, per_head, alpha_init)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        """The temperatures of a batch.

        Args:
            features: the query, key or value before scaling, (B, H, T, d).
            visible: the number of keys that each token's query can see, n = 1, 2, ..., (T,) or (B, T).

        Returns:
            float32, broadcastable to (B, H, T, 1).
        """
        tau = torch.ones((), device=features.device)  # a scalar: the parts' dtype wins
        with torch.autocast(features.device.type, enabled=False):
            for part in self.parts.values():
                tau = tau + part(features, visible)
        return tau


def build_temperatures(config: TemperatureConfig, n_head: int, head_dim: int) -> nn.ModuleDict:
    """The temperatures of one layer by the projection they scale; an empty dict is vanilla attention."""
    temperatures = nn.ModuleDict()
    for projection in PROJECTIONS:
        parts: ScalarTemperature | None = getattr(config, projection)
        if parts is not None and (parts.token, parts.position) != ("none", "none"):
            temperatures[projection] = Temperature(parts, n_head, head_dim, config.per, config.alpha_init)
    return temperatures


def scale(features: Tensor, temperature: Tensor) -> Tensor:
    """(B, H, T, d) times float32 (B, H, T, 1), multiplied in float32, back in the dtype of ``features``."""
    return (features * temperature).to(features.dtype)
