"""The terms of a temperature: the interface of every rule.  `ssa.model.temperature` combines them.

Letters: B batch, H heads, T tokens, d head_dim, D width; G is H, or 1 with one temperature for the whole layer.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig

INIT_STD = 0.02  # GPT-2's
AT_IDENTITY, TOLERANCE = 1024, 1e-3  # up to so many keys, at most so far from 1


class Shape(NamedTuple):
    """Of the layer, and of what is scaled in it."""

    n_head: int  # H: the key's and value's own number in grouped-query attention
    head_dim: int  # d
    d_model: int  # D


class Tokens(NamedTuple):
    """What a temperature may know of tokens besides the features that it scales."""

    hidden: Tensor  # x: the normalized hidden states that the layer's projections read, (B, T, D)
    visible: Tensor  # n: how many keys each token's query can see, itself among them, (T,) or (B, T)
    log_frequency: Tensor | None = None  # of each token in the training text, standardized, (B, T)

    def log_n(self, dtype: torch.dtype) -> Tensor:
        """log n, broadcastable to (B, H, T, 1)."""
        return over_heads(self.visible.to(dtype)).log()


class Part(nn.Module):
    """A part of a temperature: a function of features (B, H, T, d) and `Tokens`, broadcastable to (B, H, T, 1).

    Args:
        shape: of the layer.
        config: ``per`` head or layer, and the settings of all parts.
    """

    starts_at_identity: bool = True  # for any number of keys up to `AT_IDENTITY`, within a thousandth

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__()

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The part's value."""
        raise NotImplementedError

    def initialize(self, generator: torch.Generator) -> None:
        """Draws what does not start at a constant."""

    def is_identity_up_to(self, n: int) -> bool:
        """Whether it changes nothing, whatever its parameters, as long as queries see at most n keys."""
        return False


def groups(shape: Shape, config: TemperatureConfig) -> int:
    """G."""
    return shape.n_head if config.per == "head" else 1


def precise(features: Tensor) -> torch.dtype:
    """What a part without parameters is computed in: float32, or float64 for float64 features."""
    return torch.promote_types(features.dtype, torch.float32)


def over_heads(tokens: Tensor) -> Tensor:
    """(T,) or (B, T) -> (1 or B, 1, T, 1)."""
    return tokens.reshape(-1, 1, tokens.size(-1), 1)


class Slope(Part):
    """``slope(raw) log(n)`` with one learned ``raw`` a head or layer: longer contexts get spikier maps, against
    attention dilution.  Parameters: G.
    """

    name: ClassVar[str]  # of ``raw``

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        start = self.start(config)
        self.register_parameter(self.name, nn.Parameter(torch.full((groups(shape, config),), start)))
        self.starts_at_identity = abs(self.deviation(start, AT_IDENTITY)) < TOLERANCE

    def start(self, config: TemperatureConfig) -> float:
        """The start value of ``raw``."""
        raise NotImplementedError

    def slope(self, raw: Tensor) -> Tensor:
        """(G,) -> (G,)."""
        raise NotImplementedError

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, G, T, 1)."""
        raw: Tensor = getattr(self, self.name)  # also where torch.func puts a plain tensor in its place
        return self.slope(raw)[:, None, None] * tokens.log_n(raw.dtype)

    def deviation(self, raw: float, n: int) -> float:
        """The value at ``raw`` and n visible keys, as a number."""
        return self.slope(torch.tensor(raw, dtype=torch.float64, device="cpu")).item() * math.log(n)
