"""Dropout whose masks are functions of a seed for each sample, not of the batch that the sample is in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """A place in the model where dropout acts, in training only.

    ``site``: its column in the table of seeds, (B, sites) on the CPU: one row for each sample of the batch.  The masks
    are then the same for any micro-batch size and number of devices, and when the backward pass recomputes them.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.site = 0  # the model numbers its sites
        self._draw = _eager_draw() if p else _draw

    @property
    def active(self) -> bool:
        """Whether it drops anything."""
        return self.training and self.p > 0

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """(B, ...) -> (B, ...).  Without seeds, the mask follows from the state of torch's generator."""
        return self.seeded(F.dropout, seeds, x, p=self.p) if self.active else x

    def seeded(
        self, function: Callable[..., Tensor], seeds: Tensor | None, *batched: Tensor | None, **options: Any
    ) -> Tensor:
        """A random function of tensors (B, ...) -> (B, ...), called for one sample at a time after seeding."""
        return self._draw(self, function, seeds, *batched, **options)


def _draw(
    dropout: Dropout,
    function: Callable[..., Tensor],
    seeds: Tensor | None,
    *batched: Tensor | None,
    **options: Any,
) -> Tensor:
    if seeds is None:
        return function(*batched, **options)
    rows = []
    for row, seed in enumerate(seeds[:, dropout.site].tolist()):
        sample = [None if tensor is None else tensor[row : row + 1] for tensor in batched]
        _seed_generator(next(tensor.device for tensor in sample if tensor is not None), seed)
        rows.append(function(*sample, **options))
    return torch.cat(rows)


@functools.cache
def _eager_draw() -> Callable[..., Tensor]:
    """`_draw`, eager also in compiled blocks: the compiler cannot seed generators, and draws other numbers.

    Made with the first dropout, as `torch.compiler` takes seconds to import what it needs.
    """
    eager: Callable[..., Tensor] = torch.compiler.disable(_draw)  # type: ignore[no-untyped-call]
    return eager


def _seed_generator(device: torch.device, seed: int) -> None:
    """Seeds one device's generator; `torch.manual_seed` seeds all and is slower."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.get_device_module(device).manual_seed(seed)
