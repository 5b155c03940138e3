"""Lightning strategies: one device, a copy of the model on each of several (DDP), or a model sharded over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch.distributed import init_device_mesh

from ssa.config import TrainerConfig
from ssa.model.sharding import shard
from ssa.model.transformer import Transformer
from ssa.record import sharded_checkpoint
from ssa.training.world import World


class Strategy(NamedTuple):
    """How a model is divided among devices, and why."""

    kind: Literal["one device", "ddp", "fsdp"]
    reason: str


_BYTES = 16  # a trained parameter, its gradient, and AdamW's two moments, in float32
_SHARE = 0.6  # of a device's memory for them; the rest is for activations


def choose(config: TrainerConfig, model: Transformer, world: World, device: torch.device) -> Strategy:
    """The strategy of a run."""
    if world.size == 1:
        return Strategy("one device", "")
    if config.strategy != "auto":
        return Strategy(config.strategy, f"trainer.strategy={config.strategy}")
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = psutil.virtual_memory().total // world.local_size
    needed = sum((_BYTES if p.requires_grad else 4) * p.numel() for p in model.parameters())
    fits = needed <= _SHARE * memory
    size = f"weights, gradients and optimizer state, {needed / 1e9:.2f} GB, "
    size += f"{'fit' if fits else 'do not fit'} {_SHARE:.0%} of the {memory / 1e9:.0f} GB of a device"
    return Strategy("ddp" if fits else "fsdp", size)


def place(model: Transformer, world: World, device: torch.device) -> None:
    """Shard a model on the meta device over all devices, and allocate what this process holds of it."""
    mesh = init_device_mesh(device.type, (world.size,))
    shard(model, mesh)
    model.to_empty(device=device)
    model.tie_head()


def build(
    kind: str, world: World, device: torch.device, previous: Path
) -> DDPStrategy | ModelParallelStrategy | Literal["auto"]:
    """Lightning's strategy; ``previous``: where the checkpoint before the newest is kept."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if kind == "ddp":
        return DDPStrategy(process_group_backend=backend, broadcast_buffers=False, gradient_as_bucket_view=True)
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
