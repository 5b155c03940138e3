"""A single attention map, the object of the paper's theory.

    logits_ij = tau_i x_i^T W x_j        W = W_q^T W_k / sqrt(d), the combined query-key matrix

Temperatures are those of `ssa.model.temperature`, on the query.  Nothing is causal: every query sees all n = K keys.
Letters: B batch, H heads, Q queries, K keys, d head_dim, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig, Terms
from ssa.model.temperature import build_temperatures, scale
from ssa.model.temperature_terms import Shape, Tokens

VANILLA = TemperatureConfig(name="none")
QUERY = TemperatureConfig(name="ssa", query=Terms(token="shared", position="log"))  # SSA, weight-shared


class AttentionMap(nn.Module):
    """Attention maps of H heads over given vectors.

    Args:
        width: D.
        head_dim: d.
        temperature: only its query terms are used; `VANILLA` or `QUERY`, for example.
        n_head: H.
        seed: of the initial weights.  Equal seeds give equal W_q and W_k, with or without temperatures.

    Projections have no biases and start as normal(0, 1 / sqrt(D)), so that vectors of norm sqrt(D) have logits of
    order 1.  Everything is float64, so that rounding does not affect results.
    """

    def __init__(
        self, width: int, head_dim: int, temperature: TemperatureConfig, *, n_head: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        self.n_head, self.head_dim = n_head, head_dim
        weights, temperatures = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
        shape = (n_head * head_dim, width)
        for name in ("query", "key"):
            values = torch.randn(shape, generator=weights, dtype=torch.float64) * width**-0.5
            self.register_parameter(name, nn.Parameter(values))  # (H d, D)
        self.temperature = build_temperatures(temperature, Shape(n_head, head_dim, width)).double()
        for tau in self.temperature.values():
            tau.reset_parameters(temperatures)  # type: ignore[operator]

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, Q, D), (B, K, D) -> (B, H, Q, K); their softmax over the last dimension is the map."""
        q, k = self._heads(queries, "query"), self._heads(keys, "key")
        tau = self._tau(queries, q, keys.size(-2))
        logits: Tensor = scale(q, tau) @ k.mT * self.head_dim**-0.5
        return logits

    def temperatures(self, queries: Tensor, n_keys: int) -> Tensor:
        """tau of each query, (B, Q, D) -> (B, H, Q); 1 everywhere in a vanilla map."""
        tau = self._tau(queries, self._heads(queries, "query"), n_keys)
        return tau.squeeze(-1).expand(queries.size(0), self.n_head, queries.size(1))

    def norms(self) -> Tensor:
        """Operator norm of each head's W, (H,).  tau times it bounds a query's logits, for unit vectors."""
        shape = (self.n_head, self.head_dim, -1)
        q, k = (self.get_parameter(name).detach().reshape(shape) for name in ("query", "key"))
        norms: Tensor = torch.linalg.matrix_norm(q.mT @ k, 2) * self.head_dim**-0.5
        return norms

    def _heads(self, x: Tensor, name: str) -> Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        weight: Tensor = getattr(self, name)  # also if torch.func substitutes a plain tensor
        features: Tensor = x @ weight.mT
        return features.reshape(*x.shape[:-1], self.n_head, self.head_dim).transpose(-2, -3)

    def _tau(self, hidden: Tensor, features: Tensor, n_keys: int) -> Tensor:
        """Broadcastable to (B, H, Q, 1)."""
        if "query" not in self.temperature:
            return features.new_ones(1, 1, 1, 1)
        visible_keys = torch.full((hidden.size(-2),), n_keys, device=hidden.device)
        tau: Tensor = self.temperature["query"](features, Tokens(hidden, visible_keys))
        return tau


def spikiness(maps: Tensor) -> Tensor:
    """``1 / (n sum_j p_j^2)``, the effective fraction of keys attended to, (..., n) -> (...); lower is spikier."""
    return 1 / (maps.size(-1) * maps.square().sum(-1))
