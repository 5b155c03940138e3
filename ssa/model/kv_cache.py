"""Key-value caches for generation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LayerCache(Protocol):
    """A layer's cache, as attention uses it."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values, (B, K, T, d) each, scaled and (keys) rotated; returns all so far."""
        ...


class GrowingCache:
    """One layer's keys and values, in buffers that double when full.

    Args:
        capacity: initial size in tokens; 0: twice the first append.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.length = 0
        self._capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `LayerCache`."""
        end = self.length + key.size(2)
        if self._buffers is None or self._buffers[0].size(2) < end:
            capacity = self._capacity if self._capacity >= end else 2 * end
            self._buffers = self._grown(key, capacity), self._grown(value, capacity, 1)
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            buffer[:, :, self.length : end] = new
        self.length = end
        return self.held

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, (B, K, T, d) each."""
        assert self._buffers is not None, "nothing was appended"
        return self._buffers[0][:, :, : self.length], self._buffers[1][:, :, : self.length]

    def _grown(self, like: Tensor, capacity: int, which: int = 0) -> Tensor:
        buffer = like.new_empty((*like.shape[:2], capacity, like.size(3)))
        if self._buffers is not None:
            buffer[:, :, : self.length] = self._buffers[which][:, :, : self.length]
        return buffer


class KVCache:
    """The caches of all layers and their length in tokens."""

    def __init__(self, layers: list[LayerCache], length: int = 0) -> None:
        self.layers = layers
        self.length = length

    @classmethod
    def empty(cls, n_layer: int) -> KVCache:
        """An empty cache."""
        return cls([GrowingCache() for _ in range(n_layer)])


def visible_after_padding(padding: Tensor, length: int) -> Tensor:
    """The number of visible keys in sequences padded on the left.

    Args:
        padding: number of pad tokens before each sequence, (B,).
        length: tokens in each row, padding included.

    Returns:
        (B, length); a pad token sees only itself.
    """
    slots = torch.arange(1, length + 1, device=padding.device)
    return (slots - padding[:, None]).clamp(min=1)
