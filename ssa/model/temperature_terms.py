"""The terms of a temperature: the interface of every rule.  `ssa.model.temperature` combines them.

Letters: B batch, H heads, T tokens, d head_dim, D d_model; G is H, or 1 with one temperature for the whole layer.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig

INIT_STD = 0.02  # GPT-2's
TOLERANCE = 1e-3  # a temperature within it of 1 at up to `_IDENTITY_KEYS` keys counts as the identity
_IDENTITY_KEYS = 1024


class Shape(NamedTuple):
    """Sizes of a layer, for one of its projections."""

    n_head: int  # H; for key and value, their own number in grouped-query attention
    head_dim: int  # d
    d_model: int  # D


class Tokens(NamedTuple):
    """What a temperature can read besides the features that it scales."""

    hidden: Tensor  # x: the normalized hidden states that the layer's projections read, (B, T, D)
    visible_keys: Tensor  # n: the number of keys each token's query sees, its own included, (T,) or (B, T)
    log_frequency: Tensor | None = None  # of each token in the training text, standardized, (B, T)


class Term(nn.Module):
    """A term of a temperature: a function of features (B, H, T, d) and `Tokens`, broadcastable to (B, H, T, 1).

    Parameters have no values before `reset_parameters`.

    Args:
        shape: of the layer.
        config: ``per`` head or layer, and the settings of all terms.
    """

    slot: ClassVar[str]  # "token" or "position", added to 1, or "multiplier"
    starts_at_identity: bool = True  # within `TOLERANCE`

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__()

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The term's value."""
        raise NotImplementedError

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Sets all parameters to their start values; random ones are drawn from ``generator``."""


class LengthTerm(Term):
    """A function of n, the number of visible keys, with one learned scalar for each head or layer.  Parameters: G."""

    slot = "position"
    scalar: ClassVar[str]  # the scalar's name
    start: ClassVar[float] = 0.0  # its start value
    setting: ClassVar[str | None] = None  # the field of `TemperatureConfig` that has it instead

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.start_value: float = getattr(config, self.setting) if self.setting else self.start
        self.register_parameter(self.scalar, nn.Parameter(torch.empty(groups(shape, config))))
        self.starts_at_identity = abs(self.value_at(self.start_value, _IDENTITY_KEYS)) < TOLERANCE

    def value(self, scalar: Tensor, n: Tensor) -> Tensor:
        """The term, elementwise."""
        raise NotImplementedError

    def value_at(self, scalar: float, n: int) -> float:
        """The term as a number, in float64."""
        numbers = (torch.tensor(number, dtype=torch.float64, device="cpu") for number in (scalar, n))
        return self.value(*numbers).item()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.get_parameter(self.scalar).fill_(self.start_value)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, G, T, 1)."""
        scalar: Tensor = getattr(self, self.scalar)  # a plain tensor under torch.func
        return self.value(scalar[:, None, None], over_heads(tokens.visible_keys.to(scalar.dtype)))


def groups(shape: Shape, config: TemperatureConfig) -> int:
    """G."""
    return shape.n_head if config.per == "head" else 1


def over_heads(tokens: Tensor) -> Tensor:
    """(T,) or (B, T) -> (1 or B, 1, T, 1)."""
    return tokens.reshape(-1, 1, tokens.size(-1), 1)
