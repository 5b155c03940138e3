"""A model divided over several devices (FSDP), and tensors between one device and several.

FSDP is torch's ``fully_shard``: each block, and the rest of the model, is gathered before it computes and freed after;
weights, gradients and optimizer state are divided among the devices (arXiv 2304.11277).

`torch.distributed.fsdp` and ``tensor`` are imported where a model is sharded: they take a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh
    from torch.distributed.tensor import DTensor


def shard(model: nn.Module, blocks: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Divide the parameters of a model among the devices of a mesh, in place: those of each block, and the rest."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")  # beside `forward`; neither calls the other


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a `DTensor`, of which this process may hold a part only."""
    return hasattr(tensor, "full_tensor")


def as_shard(value: Tensor, target: Tensor | None) -> Tensor:
    """A whole tensor, which each process has, in the form of ``target``: sharded without communication, or itself."""
    if target is None or not is_sharded(target) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded.  Collective."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def local_rows(tensor: Tensor) -> slice:
    """Which rows of a tensor that may be sharded this process holds."""
    if not is_sharded(tensor):
        return slice(0, len(tensor))
    rows = local_part(as_shard(torch.arange(len(tensor)), tensor))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


@torch.no_grad()
def draw_normal(tensor: Tensor, std: float, generator: torch.Generator | None) -> None:
    """Fill a tensor with normal(0, std); every process draws the whole of one that is sharded, and keeps its part."""
    if is_sharded(tensor):
        drawn = torch.empty(tensor.shape, dtype=tensor.dtype).normal_(0.0, std, generator=generator)
        tensor.copy_(as_shard(drawn, tensor))
    else:
        tensor.normal_(0.0, std, generator=generator)
