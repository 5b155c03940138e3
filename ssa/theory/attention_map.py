"""A single attention map, the object of the paper's theory.

    logits_ij = tau_i x_i^T W x_j        W = W_q^T W_k / sqrt(d), the combined query-key matrix

Temperatures are those of `ssa.model.temperature`, on the query.  Nothing is causal: every query sees all n = K keys.
Letters: B batch, H heads, Q queries, K keys, d head_dim, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig, Terms
from ssa.model.temperature import ProjectionTemperatures, build_temperatures, scale
from ssa.model.temperature_rules import Shape, Tokens

VANILLA = TemperatureConfig(name="none")
QUERY = TemperatureConfig(name="ssa", query=Terms(token="shared", position="log"))  # SSA, weight-shared


class AttentionMap(nn.Module):
    """Attention maps of H heads over given vectors; only the query terms of ``temperature`` are used.

    Projections have no biases and start as normal(0, 1 / sqrt(D)), so that vectors of norm sqrt(D) have logits of
    order 1.  Equal seeds give equal W_q and W_k, with or without temperatures.  Everything is float64, so that rounding
    does not affect results.
    """

    query: Tensor  # (H d, D), W_q; a plain tensor if torch.func substitutes it
    key: Tensor

    def __init__(
        self, width: int, head_dim: int, temperature: TemperatureConfig, *, n_head: int = 1, seed: int = 0
    ) -> None:
        super().__init__()
        self.n_head, self.head_dim = n_head, head_dim
        draws = torch.Generator().manual_seed(seed)
        for name in ("query", "key"):
            values = torch.randn(n_head * head_dim, width, generator=draws, dtype=torch.float64) * width**-0.5
            self.register_parameter(name, nn.Parameter(values))
        self.temperature = initial_temperatures(temperature, Shape(n_head, head_dim, width), seed)

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, Q, D), (B, K, D) -> (B, H, Q, K); their softmax over the last dimension is the map."""
        q, k = self._heads(queries, self.query), self._heads(keys, self.key)
        tau = tau_of(self.temperature, "query", queries, q, keys.size(-2))
        logits: Tensor = scale(q, tau) @ k.mT * self.head_dim**-0.5
        return logits

    def temperatures(self, queries: Tensor, n_keys: int) -> Tensor:
        """tau of each query, (B, Q, D) -> (B, H, Q); 1 everywhere in a vanilla map."""
        tau = tau_of(self.temperature, "query", queries, self._heads(queries, self.query), n_keys)
        return tau.squeeze(-1).expand(queries.size(0), self.n_head, queries.size(1))

    def norms(self) -> Tensor:
        """Operator norm of each head's W, (H,).  tau times it bounds a query's logits, for unit vectors."""
        shape = (self.n_head, self.head_dim, -1)
        q, k = (weight.detach().reshape(shape) for weight in (self.query, self.key))
        norms: Tensor = torch.linalg.matrix_norm(q.mT @ k, 2) * self.head_dim**-0.5
        return norms

    def _heads(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, d)."""
        return (x @ weight.mT).reshape(*x.shape[:-1], self.n_head, self.head_dim).transpose(-2, -3)


def initial_temperatures(config: TemperatureConfig, shape: Shape, seed: int) -> ProjectionTemperatures:
    """The temperatures of a config in float64, at their start values."""
    temperatures, draws = build_temperatures(config, shape).double(), torch.Generator().manual_seed(seed)
    for _, temperature in temperatures.items():
        temperature.reset_parameters(draws)
    return temperatures


def tau_of(temperatures: ProjectionTemperatures, name: str, x: Tensor, features: Tensor, n_keys: int) -> Tensor:
    """tau of x, (B, T, D), with features (B, H, T, d): broadcastable to (B, H, T, 1); 1 without such a temperature."""
    visible_keys = torch.full((x.size(-2),), n_keys, device=x.device)
    tau: Tensor | None = temperatures(name, features.transpose(1, 2), Tokens(x, visible_keys))
    return features.new_ones(1, 1, 1, 1) if tau is None else tau.transpose(1, 2)


def spikiness(maps: Tensor) -> Tensor:
    """``1 / (n sum_j p_j^2)``, the effective fraction of keys attended to, (..., n) -> (...); lower is spikier."""
    return 1 / (maps.size(-1) * maps.square().sum(-1))


def map_metrics(maps: Tensor, ideal: Tensor, tau: Tensor, norms: Tensor) -> dict[str, Tensor]:
    """Scalar metrics of maps P, (H, Q, K), and tau, (H, Q), given P*, (Q, K), and each head's ||W||, (H,).

    ``norm`` is the mean of ``||W||``; ``norm_max`` the maximum of ``tau_i ||W||``, the operator norm of the matrix
    behind a query's logits; ``norm_geometric`` the mean of ``||W||`` with tau normalized to geometric mean 1 in each
    head; ``spikiness_error`` the mean absolute difference from the spikiness of P*.
    """
    reached, wanted = spikiness(maps), spikiness(ideal)
    return {
        "norm": norms.mean(),
        "norm_max": (tau * norms.unsqueeze(-1)).max(),
        "norm_geometric": (tau.log().mean(-1).exp() * norms).mean(),
        "tau_min": tau.min(),
        "tau_max": tau.max(),
        "spikiness": reached.mean(),
        "target_spikiness": wanted.mean(),
        "spikiness_error": (reached - wanted).abs().mean(),
    }
