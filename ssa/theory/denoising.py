"""Denoising: estimate a signal from a context that contains noise tokens (arXiv 2411.12892, table 2).

    signal   u ~ N(0, I_m)
    token    with probability 1 - rho clean:  v = u + sigma e, marker +1       e ~ N(0, I_m)
             with probability rho noise:      v = s e,         marker -1       s = `Task.s`
    vector   x = (v, marker, 0) for each of L tokens; a read-out query (0, 0, 1) attends to all of them; D = m + 2

With the default s, noise and clean tokens have the same expected norm and differ only in the marker, which estimators
may read.  Signal and noise fill the same m coordinates, so that no linear map of the values separates them.

A risk is per dimension, ``E |estimate - u|^2 / m``.  Letters: B batch, k the number of clean tokens in a context,
binomial(L, 1 - rho).  Closed forms need scipy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig, Terms
from ssa.model.temperature_rules import Shape
from ssa.theory.attention_map import QUERY, VANILLA, AttentionMap, initial_temperatures, tau_of
from ssa.theory.ensemble import generator

VALUE = TemperatureConfig(name="value", value=Terms(token="shared", position="log"))  # SSA, weight-shared
MODEL, DATA, TEST = range(3)  # first number of a `generator` key
ROWS = 1000  # contexts per batch of estimates


@dataclass(frozen=True)
class Task:
    """The data process."""

    length: int  # L, tokens per context
    noise_rate: float  # rho, the probability that a token is noise
    dimension: int  # m
    sigma: float  # standard deviation of a clean token around its signal, above 0
    noise_scale: float | None = None  # s, standard deviation of a noise token; None: that of a clean token

    @property
    def s(self) -> float:
        return (1 + self.sigma**2) ** 0.5 if self.noise_scale is None else self.noise_scale

    @property
    def width(self) -> int:
        return self.dimension + 2

    def draw(self, n: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens x, (n, L, D), and signals u, (n, m), float64."""
        # Normal variates are drawn in float32, which is three times as fast, then converted to float64.
        signal = torch.randn(n, self.dimension, generator=draws).double()
        noise = torch.randn(n, self.length, self.dimension, generator=draws)
        clean = (torch.rand(n, self.length, 1, generator=draws) >= self.noise_rate).double()
        tokens = torch.zeros(n, self.length, self.width, dtype=torch.float64)
        torch.mul(noise, clean * (self.sigma - self.s) + self.s, out=tokens[..., :-2])
        tokens[..., :-2].addcmul_(clean, signal[:, None])
        tokens[..., -2:-1] = 2 * clean - 1
        return tokens, signal

    def counts(self) -> tuple[Tensor, Tensor]:
        """k = 0 ... L, and the probability of each, (L + 1,)."""
        from scipy.stats import binom

        k = np.arange(self.length + 1.0)
        return torch.from_numpy(k), torch.from_numpy(binom.pmf(k, self.length, 1 - self.noise_rate))


@dataclass(frozen=True)
class Estimator:
    """``a_k (sum of clean v) + b_k (sum of noise v)``: linear in v with coefficients that depend on markers only."""

    clean: Tensor  # a_k, (L + 1,)
    noise: Tensor  # b_k, (L + 1,)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, m)."""
        values, clean = tokens[..., :-2], tokens[..., -2] > 0
        k = clean.sum(-1, keepdim=True)
        return torch.einsum("bl,blm->bm", torch.where(clean, self.clean[k], self.noise[k]), values)

    def risk(self, task: Task) -> float:
        """Closed-form risk, ``E[(1 - k a_k)^2 + k sigma^2 a_k^2 + (L - k) s^2 b_k^2]``."""
        (k, p), a, b = task.counts(), self.clean, self.noise
        return float(p @ ((1 - k * a) ** 2 + k * (task.sigma * a) ** 2 + (task.length - k) * (task.s * b) ** 2))

    def shrunk(self, task: Task) -> Estimator:
        """The scalar multiple with the lowest risk."""
        (k, p), a, b = task.counts(), self.clean, self.noise
        square = (k * a) ** 2 + k * (task.sigma * a) ** 2 + (task.length - k) * (task.s * b) ** 2
        reach, power = p @ (k * a), p @ square  # risk of the multiple c: 1 - 2 c reach + c^2 power
        factor = reach / power if power > 0 else power
        return Estimator(factor * a, factor * b)


def naive(task: Task) -> Estimator:
    """The average of all tokens."""
    share = torch.full((task.length + 1,), 1 / task.length, dtype=torch.float64)
    return Estimator(share, share)


def clean_average(task: Task) -> Estimator:
    """The average of the clean tokens; 0 if there are none."""
    k, _ = task.counts()
    return Estimator(torch.where(k > 0, 1 / k, 0), torch.zeros_like(k))


def bayes(task: Task) -> Estimator:
    """The posterior mean given the markers, with the minimum risk, ``E[sigma^2 / (k + sigma^2)]``."""
    k, _ = task.counts()
    return Estimator(1 / (k + task.sigma**2), torch.zeros_like(k))


def muted_average(task: Task) -> Estimator:
    """The best multiple of ``(sum of clean v) / L``: the limit of a uniform map with all noise values muted."""
    share = naive(task).clean
    return Estimator(share, torch.zeros_like(share)).shrunk(task)


def marker_map(task: Task, ratio: float) -> Estimator:
    """The best multiple of a softmax average in which noise weighs ``ratio`` > 0 times as much as a clean token."""
    k, _ = task.counts()
    weight = 1 / (k + (task.length - k) * ratio)
    return Estimator(weight, ratio * weight).shrunk(task)


def best_marker_map(task: Task) -> Estimator:
    """`marker_map` with the lowest risk: the limit of vanilla attention whose logits depend on the marker only."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(lambda log: marker_map(task, 10**log).risk(task), bounds=(-12, 0), method="bounded")
    return marker_map(task, float(10**found.x))


FIXED = {
    "naive": naive,
    "shrunk naive": lambda task: naive(task).shrunk(task),
    "clean average": clean_average,
    "Bayes": bayes,
}


@dataclass(frozen=True)
class Method:
    """An attention variant: a learned or uniform (1 / L) map, with SSA's temperatures on query or value.

    ``limit`` is the best estimator it can represent if map and temperature read the marker only.
    """

    limit: Callable[[Task], Estimator]
    learned_map: bool = True
    query: bool = False
    value: bool = False


# A learned map with muted values reaches the Bayes risk: clean values weigh 1 / (k + (L - k) r), which is
# 1 / ((1 - r) (k + sigma^2)) for r = sigma^2 / (L + sigma^2).
METHODS = {
    "vanilla": Method(best_marker_map),
    "value-selective": Method(bayes, value=True),
    "SSA": Method(bayes, query=True, value=True),
    "uniform vanilla": Method(FIXED["shrunk naive"], learned_map=False),
    "uniform value-selective": Method(muted_average, learned_map=False, value=True),
}


class Denoiser(nn.Module):
    """One head of attention, ``W_o sum_j p_j tau_v(x_j) W_v x_j``, with W_v of (D, D) and W_o of (m, D).

    p is the map of the read-out query (`AttentionMap`), or 1 / L; tau_v is SSA's weight-shared value temperature, or 1.
    W_v and W_o start as normal(0, 1 / sqrt(D)); equal seeds give equal start matrices for all methods.
    """

    read_out: Tensor

    def __init__(self, task: Task, method: Method, seed: int) -> None:
        super().__init__()
        width = task.width
        attention = AttentionMap(width, width, QUERY if method.query else VANILLA, seed=seed)
        self.attention = attention if method.learned_map else None
        draws = generator(MODEL, seed)
        start = [torch.randn(rows, width, generator=draws, dtype=torch.float64) for rows in (width, task.dimension)]
        self.value, self.output = (nn.Parameter(values * width**-0.5) for values in start)
        self.temperature = initial_temperatures(VALUE if method.value else VANILLA, Shape(1, width, width), seed)
        self.register_buffer("read_out", torch.eye(width, dtype=torch.float64)[-1:])  # (1, D)

    def forward(self, tokens: Tensor, signal: Tensor) -> Tensor:
        """The loss for (B, L, D) and (B, m): mean squared error per dimension."""
        return (self.denoise(tokens) - signal).square().mean()

    def denoise(self, tokens: Tensor) -> Tensor:
        """(B, L, D) -> (B, m)."""
        weights = (self.map(tokens) * self.value_temperatures(tokens)).unsqueeze(-2)  # (B, 1, L)
        pooled = (weights @ tokens).squeeze(-2)  # W_v applied after the sum: same result, far cheaper
        return pooled @ self.value.mT @ self.output.mT

    def map(self, tokens: Tensor) -> Tensor:
        """p of each token, (B, L, D) -> (B, L)."""
        if self.attention is None:
            return torch.full_like(tokens[..., 0], 1 / tokens.size(-2))
        return self.attention.logits(self.read_out[None], tokens)[:, 0, 0].softmax(-1)

    def value_temperatures(self, tokens: Tensor) -> Tensor:
        """tau_v of each token, (B, L, D) -> (B, L), or (1, 1) without value temperature."""
        if "value" not in self.temperature:
            return tokens.new_ones(1, 1)
        features = (tokens @ self.value.mT).unsqueeze(1)  # (B, 1, L, D)
        return tau_of(self.temperature, "value", tokens, features, tokens.size(-2))[:, 0, :, 0]


@torch.no_grad()
def simulate(task: Task, estimates: Sequence[Callable[[Tensor], Tensor]], contexts: int, seed: int = 0) -> Tensor:
    """Squared errors per dimension of estimators (B, L, D) -> (B, m) on the same contexts, (estimators, contexts)."""
    draws, errors = generator(TEST, seed), []
    for start in range(0, contexts, ROWS):
        tokens, signal = task.draw(min(ROWS, contexts - start), draws)
        errors.append(torch.stack([(estimate(tokens) - signal).square().mean(-1) for estimate in estimates]))
    return torch.cat(errors, dim=-1)
