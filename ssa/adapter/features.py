"""Where the features of a query, key or value lie in the output of a module.

Letters: B batch, T tokens, H heads, d head_dim, F features of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ssa.model.temperature import scale


def token_axis(output: Tensor, length: int) -> int | None:
    """The axis of T in (B, T, F), (B, T, H, d) or (B, H, T, d); None for other shapes."""
    if output.ndim not in (3, 4):
        return None
    return next((axis for axis in range(1, output.ndim - 1) if output.size(axis) == length), None)


def by_token(output: Tensor, axis: int) -> Tensor:
    """(B, T, F), (B, T, H, d) or (B, H, T, d) -> (B, T, F).  ``axis``: of T."""
    return output if output.ndim == 3 else output.transpose(1, axis).flatten(2)


def as_output(features: Tensor, like: Tensor, axis: int) -> Tensor:
    """The inverse of `by_token`, in the shape of ``like``."""
    if like.ndim == 3:
        return features
    return features.reshape(*features.shape[:2], like.size(3 - axis), like.size(3)).transpose(1, axis)


@dataclass(frozen=True)
class FeatureIndex:
    """Which of the F features of each token belong to which head.

    Attributes:
        n_head: H.
        head_dim: d.
        axis: of the tokens in the module's output.
        indices: of the features of the first head, then the second, ..., H d of them.
    """

    n_head: int
    head_dim: int
    axis: int
    indices: tuple[int, ...]

    @cached_property
    def _regular(self) -> tuple[int, int] | None:
        """Start and stride of heads whose features are neighbors, at equal distances."""
        start = self.indices[0]
        stride = self.indices[self.head_dim] - start if self.n_head > 1 else self.head_dim
        expected = (start + head * stride + i for head in range(self.n_head) for i in range(self.head_dim))
        return (start, stride) if stride >= self.head_dim and self.indices == tuple(expected) else None

    def select(self, features: Tensor) -> Tensor:
        """(B, T, F) -> (B, T, H, d), a view where possible."""
        parts = self._heads(features)
        if parts is None:
            return features[..., list(self.indices)].reshape(*features.shape[:2], self.n_head, self.head_dim)
        _, heads, _, start = parts
        return heads[..., start : start + self.head_dim]

    def scale(self, features: Tensor, temperature: Tensor) -> Tensor:
        """Multiply these features of (B, T, F) by a temperature, broadcastable to (B, T, H, d)."""
        parts = self._heads(features)
        if parts is None:
            factor = torch.ones_like(features, dtype=temperature.dtype)
            wide = temperature.expand(*features.shape[:2], self.n_head, self.head_dim).flatten(2)
            factor[..., list(self.indices)] = wide
            return scale(features, factor)
        before, heads, after, start = parts
        end = start + self.head_dim
        scaled = scale(heads[..., start:end], temperature)
        if scaled.size(-1) < heads.size(-1):
            scaled = torch.cat([heads[..., :start], scaled, heads[..., end:]], -1)
        scaled = scaled.flatten(2)
        if before.size(-1) or after.size(-1):
            scaled = torch.cat([before, scaled, after], -1)
        return scaled

    def _heads(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, int] | None:
        """Regular features: those before, the heads (B, T, H, stride), those after, and the start in each head."""
        if self._regular is None:
            return None
        start, stride = self._regular
        within = start % stride if self.n_head * stride == features.size(-1) else 0
        if within + self.head_dim > stride:
            return None
        first = start - within
        end = first + self.n_head * stride
        if end > features.size(-1):
            return None
        heads = features[..., first:end].reshape(*features.shape[:2], self.n_head, stride)
        return features[..., :first], heads, features[..., end:], within
