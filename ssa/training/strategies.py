"""Lightning strategies: one device, a copy of the model on each of several (DDP), or a model sharded over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed import init_device_mesh

from ssa.model.sharding import shard
from ssa.model.transformer import Transformer
from ssa.record import sharded_checkpoint
from ssa.training.world import World


def place(model: Transformer, world: World, device: torch.device) -> None:
    """Shard a model on the meta device over all devices, and allocate what this process holds of it."""
    mesh = init_device_mesh(device.type, (world.size,))
    shard(model, model.blocks, mesh)
    model.to_empty(device=device)
    model.tie_head()


def build(
    kind: str, world: World, device: torch.device, previous: Path, unused: bool = False
) -> DDPStrategy | ModelParallelStrategy | Literal["auto"]:
    """Lightning's strategy.

    Args:
        kind: ``ddp``, ``fsdp`` or ``auto``.
        world, device: of the run.
        previous: where the checkpoint before the newest is kept.
        unused: whether a step may leave out parameters, such as those of experts or of a vision tower.
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    if kind == "ddp":
        how: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
        return DDPStrategy(process_group_backend=backend, find_unused_parameters=unused, **how)
    if kind == "fsdp":
        return Sharded(previous, data_parallel_size=world.size, tensor_parallel_size=1, process_group_backend=backend)
    return "auto"


class Sharded(ModelParallelStrategy):
    """FSDP, with checkpoints as `ssa.record.sharded_checkpoint` writes and reads them."""

    def __init__(self, previous: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self._previous = previous

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimizer's own state, of this device's shards."""
        state: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state_dict()
        return state

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Nothing: the module adds its tensors to a checkpoint."""
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        sharded_checkpoint.save(checkpoint, Path(filepath), self._previous)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.model is not None
        return sharded_checkpoint.load(Path(checkpoint_path), self.model, self.optimizers)
