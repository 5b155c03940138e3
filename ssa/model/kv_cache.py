"""Key-value caches for generation."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class LayerCache(Protocol):
    """A layer's cache, as attention uses it."""

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends keys and values, (B, K, T, d) each, scaled and (keys) rotated; returns all so far."""
        ...


class GrowingCache:
    """One layer's keys and values, in buffers that double when full.

    ``capacity``: initial size in tokens; 0: twice the first append.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.length = 0
        self._capacity = capacity
        self._buffers: tuple[Tensor, ...] = ()

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """See `LayerCache`."""
        end = self.length + key.size(2)
        if not self._buffers or self._buffers[0].size(2) < end:
            held = self.held if self._buffers else (key[:, :, :0], value[:, :, :0])
            capacity = self._capacity if self._capacity >= end else 2 * end
            self._buffers = tuple(F.pad(tensor, (0, 0, 0, capacity - self.length)) for tensor in held)
        for buffer, new in zip(self._buffers, (key, value), strict=True):
            buffer[:, :, self.length : end] = new
        self.length = end
        return self.held

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, (B, K, T, d) each."""
        key, value = (buffer[:, :, : self.length] for buffer in self._buffers)
        return key, value


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
    """Visible keys, (B, length), of rows that begin with ``padding`` (B,) pad tokens; a pad token sees only itself."""
    return (torch.arange(1, length + 1, device=padding.device) - padding[:, None]).clamp(min=1)
