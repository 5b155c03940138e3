"""Memory of a training run on each device, by part.

Weights, gradients and both moments of AdamW are float32; what a micro-batch adds is counted by `trace_step`.  Over
several devices (``n`` in all):

    ddp     everything on each device, and buckets in which gradients are reduced, as large as the gradients
    fsdp    1/n of weights, gradients and optimizer state; one gathered layer and what is outside the layers, whole,
            with their gradients; with several micro-batches a step, all gradients whole until they are summed

On the CPU the peak resident memory is more than the sum.  glibc returns blocks of `SMALL` bytes and more as soon as
they are freed.  Smaller ones stay in its heap, where a freed tensor's place is seldom taken by one of the same size,
since small objects settle beside it: nodes of autograd's graph, which live until the backward pass even if the tensors
are recomputed.  After training, the heap stays, and the best weights are mapped from their file.  With
``MALLOC_MMAP_THRESHOLD_=65536``, which maps every tensor on its own, measured peaks are 45 to 70 MB above the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssa.config import Config
from ssa.device import uses_flex
from ssa.planning.disk import FLOAT
from ssa.planning.hardware import Device, devices_per_node
from ssa.planning.parameters import Parameters
from ssa.planning.traced_step import StepBytes, trace_step

HEAP_WASTE = 0.5  # of glibc's heap, over the small tensors of a step: 0.4 to 0.9 in runs of 1M to 135M parameters


@dataclass(frozen=True)
class DeviceShare:
    """The devices of a run and each one's share of a batch, in sequences."""

    devices: int  # in all
    micro_batch: int
    accumulate: int  # micro-batches of a step on each device

    @classmethod
    def of(cls, config: Config, kind: str) -> DeviceShare:
        """The share of a config on a kind of device.

        Raises:
            UserError: the batch cannot be divided.
        """
        devices = devices_per_node(config, kind) * config.trainer.nodes
        return cls(devices, *config.trainer.micro_batches(devices))


def step_bytes(config: Config, vocab_size: int, device: Device, share: DeviceShare) -> StepBytes:
    """What one micro-batch adds on a device."""
    return trace_step(
        config.model,
        vocab_size,
        (share.micro_batch, config.data.block_size),
        device.precision,
        device.kind,
        accumulates=share.accumulate > 1,
        temperatures_alone=config.optim.train == "temperature",
        dense_mask=config.data.document_mask and not uses_flex(config.model, config.trainer, device.kind),
        checkpointed=config.trainer.checkpoint_activations,
    )


def memory_parts(
    parameters: Parameters,
    step: StepBytes,
    device: Device,
    n_devices: int = 1,
    strategy: str = "ddp",
    best: int = 0,
    accumulates: bool = False,
) -> Mapping[str, int]:
    """Peak bytes on one device, by part; their sum is the peak.

    Args:
        parameters: of the model.
        step: what a micro-batch adds.
        device: the device.
        n_devices: in all.
        strategy: over several devices, ``ddp`` or ``fsdp``.
        best: size of the best checkpoint, from which the weights are read after training.
        accumulates: whether a step has several micro-batches; fsdp then holds whole gradients until the last.
    """
    shards = n_devices if strategy == "fsdp" else 1
    whole_gradients = accumulates and shards > 1
    weights, trained = FLOAT * parameters.total, FLOAT * parameters.trained
    parts = {
        "weights": -(-weights // shards),
        "gradients": trained if whole_gradients else -(-trained // shards),
        "optimizer state": -(-2 * trained // shards),
        "activations": step.activations,
        "loss": step.loss,
    }
    if step.backward:
        parts["backward pass"] = step.backward
    if n_devices > 1 and strategy == "ddp":
        parts["gradient buckets"] = trained
    elif n_devices > 1:
        whole = parameters.block + parameters.root + parameters.block_trained + parameters.root_trained
        parts["gathered layer, embeddings"] = FLOAT * whole
    if device.kind == "cpu":
        parts["allocator"] = int(HEAP_WASTE * step.small_in_graph)
        returned = step.activations + step.loss + step.backward - step.small
        parts["best weights"] = max(0, best - returned)
    parts["base"] = device.base
    return parts
