"""A model divided over several devices (FSDP), and tensors between one device and several.

FSDP is torch's ``fully_shard``: each block, and the rest of the model, is gathered before it computes and freed after;
weights, gradients and optimizer state are divided among the devices (arXiv 2304.11277).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ssa.model.transformer import Transformer


def shard(model: Transformer, mesh: DeviceMesh) -> None:
    """Divide the parameters of a model among the devices of a mesh, in place; a second call does nothing."""
    if isinstance(model, FSDPModule):
        return
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden")  # which computes without `forward`


def synchronize_gradients(model: Transformer, last: bool) -> None:
    """Whether the next backward pass of a sharded model sums gradients over devices: that of the last micro-batch."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)


def as_shard(value: Tensor, target: Tensor | None) -> Tensor:
    """A whole tensor, which each process has, in the form of ``target``: sharded without communication, or itself."""
    if not isinstance(target, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded.  Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds a part of it only."""
    return isinstance(tensor, DTensor)
