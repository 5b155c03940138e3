"""The norm of W needed to fit given attention maps, with and without query temperatures.

N tokens have fixed embeddings, rows of X, (N, D), of norm sqrt(D), as after RMSNorm.  A target P*, (N, N), has rows
of different spikiness; a map P of logits ``tau_i x_i^T W x_j`` is fitted to it by

    mean_i KL(P*_i || P_i)  +  decay * penalty

with one of two penalties.  *effective*: ``mean_i ||tau_i W||_F^2``, on the matrix that produces a query's logits, so
that moving scale from W into tau gains nothing; about the variance of the logits over keys.
*weights*: ``(||W_q||_F^2 + ||W_k||_F^2) / (2 sqrt(d))``, plain weight decay, which ignores the temperatures.

The decays trace a curve of norm against KL; `at_level` interpolates the norm at a given KL.  Maps with temperatures
include vanilla maps (tau = 1), so that at the optimum they cannot be worse; the question is how much better they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.theory import ensemble
from ssa.theory.attention_map import QUERY, VANILLA, AttentionMap, map_metrics

Family = Literal["scaled", "groups"]
Penalty = Literal["effective", "weights"]
Method = Literal["vanilla", "ssa", "free"]  # no temperature; SSA with weight sharing; one learned scalar per query


def embeddings(n: int, width: int, draws: torch.Generator) -> Tensor:
    """n Gaussian vectors scaled to norm sqrt(width), (n, width)."""
    return F.normalize(torch.randn(n, width, generator=draws, dtype=torch.float64), dim=-1) * math.sqrt(width)


def sharpness(n: int, spread: float, mean: float) -> Tensor:
    """s of n rows, (n,): log-spaced, the largest ``spread`` times the smallest, with this arithmetic mean."""
    s = spread ** torch.linspace(0, 1, n, dtype=torch.float64)
    return s * (mean / s.mean())


def scaled_target(x: Tensor, matrix: Tensor, s: Tensor) -> Tensor:
    """Softmax of ``s_i x_i^T M x_j``, (N, D), (D, D), (N,) -> (N, N); W = M and tau = s reach it exactly."""
    return torch.softmax(s.unsqueeze(-1) * (x @ matrix @ x.mT), dim=-1)


def group_sizes(n: int, spread: float) -> list[int]:
    """k of n rows: log-spaced around n / 8, the largest about ``spread`` times the smallest (rounded).

    Raises:
        ValueError: a group would have fewer than one or more than n tokens.
    """
    if not 1 <= spread <= (n / 8) ** 2 or spread > 64:
        raise ValueError(f"spread={spread:g}: no groups of {n} tokens; valid: 1 to {min(64.0, (n / 8) ** 2):g}")
    s = spread ** torch.linspace(-0.5, 0.5, n, dtype=torch.float64)
    return [round(k) for k in (s * (n / 8)).tolist()]


def group_target(sizes: Sequence[int], draws: torch.Generator) -> Tensor:
    """Row i uniform over ``sizes[i]`` tokens drawn at random, (N, N)."""
    n = len(sizes)
    rank = torch.rand(n, n, generator=draws, dtype=torch.float64).argsort(-1).argsort(-1)
    k = torch.tensor(sizes, dtype=torch.float64).unsqueeze(-1)
    return (rank < k) / k


def problem(family: Family, n: int, width: int, spread: float, mean: float, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings (N, D) and target (N, N) of a seed; M's entries are normal(0, 1 / D), so that logits before s are
    about normal(0, 1).  ``mean`` is the mean sharpness in the family "scaled"; "groups" ignores it.
    """
    draws = ensemble.generator(seed)  # equal embeddings, and equal M or token order per row, for all spreads
    x = embeddings(n, width, draws)
    if family == "groups":
        return x, group_target(group_sizes(n, spread), draws)
    matrix = torch.randn(width, width, generator=draws, dtype=torch.float64) / width
    return x, scaled_target(x, matrix, sharpness(n, spread, mean))


class TargetFit(nn.Module):
    """A single-head map, d = D, over fixed embeddings x, (N, D), with target P*, (N, N); calling it returns the loss.

    "free" temperatures are ``exp(theta_i)``, with theta = 0 at the start.
    """

    x: Tensor
    target: Tensor
    decay: Tensor

    def __init__(self, x: Tensor, target: Tensor, method: Method, decay: float, penalty: Penalty, seed: int) -> None:
        super().__init__()
        self.map = AttentionMap(x.size(-1), x.size(-1), QUERY if method == "ssa" else VANILLA, seed=seed)
        self.theta = nn.Parameter(torch.zeros(len(x), dtype=torch.float64), requires_grad=method == "free")
        self.penalty = penalty
        for name, values in (("x", x), ("target", target), ("decay", torch.tensor(decay, dtype=torch.float64))):
            self.register_buffer(name, values)

    def forward(self) -> Tensor:
        """The loss, a scalar, in nats."""
        kl = self.kl(self.log_maps())
        if self.penalty == "effective":
            return kl + self.decay * self._effective()
        squares = self.map.query.square().sum() + self.map.key.square().sum()
        return kl + self.decay * (squares / (2 * math.sqrt(self.map.head_dim)))

    def log_maps(self) -> Tensor:
        """log P, (N, N)."""
        x = self.x.unsqueeze(0)
        logits = self.map.logits(x, x)[0, 0] * self.theta.exp().unsqueeze(-1)
        return torch.log_softmax(logits, dim=-1)

    def kl(self, log_maps: Tensor) -> Tensor:
        """mean_i KL(P*_i || P_i), a scalar."""
        rows: Tensor = (torch.special.xlogy(self.target, self.target) - self.target * log_maps).sum(-1)
        return rows.mean()

    def temperatures(self) -> Tensor:
        """tau, (N,)."""
        return self.map.temperatures(self.x.unsqueeze(0), len(self.x))[0, 0] * self.theta.exp()

    def _effective(self) -> Tensor:
        """mean_i ||tau_i W||_F^2, a scalar."""
        product = self.map.query.mT @ self.map.key
        return self.temperatures().square().mean() * product.square().sum() / self.map.head_dim

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Fit, norms, spikiness and temperatures, over rows: `map_metrics` and others.

        ``explained`` is the relative reduction of KL from uniform maps (norm 0), ``norm_mean`` the mean of
        ``tau_i ||W||``, ``frobenius`` the root mean square of ``||tau_i W||_F``.
        """
        log_maps, tau, norms = self.log_maps(), self.temperatures(), self.map.norms()
        kl, uniform = self.kl(log_maps), self.kl(torch.full_like(log_maps, -math.log(len(self.x))))
        found = {
            "kl": kl,
            "explained": 1 - kl / uniform,
            "l1": (log_maps.exp() - self.target).abs().sum(-1).mean(),
            "norm_mean": tau.mean() * norms[0],
            "frobenius": self._effective().sqrt(),
            **map_metrics(log_maps.exp().unsqueeze(0), self.target, tau.unsqueeze(0), norms),
        }
        return {name: value.item() for name, value in found.items()}


def fit(
    *,
    family: Family,
    method: Method,
    penalty: Penalty,
    n: int,
    width: int,
    spread: float,
    mean: float,
    decays: Sequence[float],
    seeds: int,
    first_seed: int = 0,
    **training: Any,
) -> list[dict[str, float]]:
    """`TargetFit.measure` for each seed and decay, all fitted as one ensemble; ``training`` is for `ensemble.train`."""
    members = []
    for seed in range(first_seed, first_seed + seeds):
        x, target = problem(family, n, width, spread, mean, seed)
        members += [(seed, decay, TargetFit(x, target, method, decay, penalty, seed)) for decay in decays]
    ensemble.train([member for *_, member in members], lambda number, chunk: (), **training)
    return [{"seed": seed, "decay": decay, **member.measure()} for seed, decay, member in members]


def at_level(path: Sequence[Mapping[str, float]], level: float, name: str) -> float:
    """A metric of one seed at the largest decay whose ``explained`` reaches the level.

    Interpolated linearly in ``explained`` between decays; nan if no two decays bracket the level.
    """
    for before, after in pairwise(sorted(path, key=lambda row: -row["decay"])):
        low, high = before["explained"], after["explained"]
        if low <= level < high:
            return before[name] + (level - low) / (high - low) * (after[name] - before[name])
    return math.nan
