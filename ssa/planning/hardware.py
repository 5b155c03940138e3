"""The device that a run is planned for: its memory, and how fast it computes."""

from __future__ import annotations

import functools
import os
import time
from typing import NamedTuple

import psutil
import torch

from ssa.config import Config
from ssa.device import Precision, resolve_device, resolve_precision
from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.planning.flops import flops_per_token
from ssa.planning.parameters import count_parameters


class GPU(NamedTuple):
    """A GPU by its data sheet: what it is called, memory in bytes, peak of dense bf16 matrix products in FLOP/s."""

    name: str
    memory: float
    peak: float


GPUS = {  # keys: valid values of plan.device; peaks without sparsity, of SXM modules where there are several
    "a10": GPU("A10", 24e9, 125e12),
    "a100-40gb": GPU("A100 40 GB", 40e9, 312e12),
    "a100": GPU("A100", 80e9, 312e12),
    "l4": GPU("L4", 24e9, 121e12),
    "l40s": GPU("L40S", 48e9, 362e12),
    "rtx3090": GPU("RTX 3090", 24e9, 71e12),
    "rtx4090": GPU("RTX 4090", 24e9, 165e12),
    "h100": GPU("H100", 80e9, 989e12),
    "h200": GPU("H200", 141e9, 989e12),
    "b200": GPU("B200", 180e9, 2250e12),
}
_CUDA_BASE = 600_000_000  # CUDA context, kernels, cuBLAS workspace; assumed, not measured


class Device(NamedTuple):
    """One device of a run.

    Attributes:
        name: as printed.
        kind: ``cpu``, ``cuda`` or ``mps``.
        precision: of matrix products.
        memory: bytes; None: not known.
        base: of these, bytes that no tensor of the run takes; on the CPU, those of this process as it is now.
        peak: FLOP/s of dense bf16 matrix products, by its data sheet; None: not known.
    """

    name: str
    kind: str
    precision: Precision
    memory: int | None
    base: int
    peak: float | None = None


class Speed(NamedTuple):
    """FLOP/s of training on one device, None if not known, and the source."""

    value: float | None
    how: str


def planned_device(config: Config) -> Device:
    """The device of ``plan.device``, else that of ``trainer.device`` on this machine, with ``plan.memory``."""
    plan, trainer, resident = config.plan, config.trainer, psutil.Process().memory_info().rss
    here = resolve_device("auto")
    kind = "cuda" if plan.device else here.type if trainer.device == "auto" else trainer.device
    is_here = plan.device is None and (kind != "cuda" or here.type == "cuda")
    gpu = GPUS[plan.device] if plan.device else _gpu_here() if kind == "cuda" and is_here else None
    memory: float | None = gpu.memory if gpu else None
    if kind != "cuda":
        memory = psutil.virtual_memory().total / _sharing(config, kind)
    return Device(
        name=gpu.name if gpu else kind,
        kind=kind,
        precision=resolve_precision(trainer.precision, torch.device(kind)) if is_here else _of_gpu(trainer.precision),
        memory=plan.memory_bytes or (None if memory is None else int(memory)),
        base=_CUDA_BASE if kind == "cuda" else resident,
        peak=gpu.peak or None if gpu else None,
    )


def planned_speed(config: Config, device: Device) -> Speed:
    """``plan.mfu`` of the peak; a CPU is timed, unless ``plan.tflops`` is given."""
    plan = config.plan
    peak, source = device.peak if device.precision == "bf16-mixed" else None, f"dense bf16 peak of {device.name}"
    if plan.tflops is not None:
        peak, source = plan.tflops * 1e12, "plan.tflops"
    if peak is not None:
        share = f"times an assumed MFU of {plan.mfu:.0%} (plan.mfu)"
        return Speed(plan.mfu * peak, f"{peak / 1e12:,.4g} TFLOP/s, {source}, {share}")
    if device.kind == "cuda":
        return Speed(None, "peak not known; plan.tflops=NUMBER or plan.device=NAME tells it")
    speed = timed_speed(device.precision) / _sharing(config, device.kind)
    return Speed(speed, "timed in training steps of one layer on this CPU")


def _sharing(config: Config, kind: str) -> int:
    """Processes that share one CPU and its memory."""
    return devices_per_node(config, kind) if kind == "cpu" else 1


def devices_per_node(config: Config, kind: str) -> int:
    """``trainer.devices``; ``auto``: all GPUs here, or the processes that torchrun or Slurm started on this node."""
    if config.trainer.devices != "auto":
        return config.trainer.devices
    started = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
    return int(started) if started and started.isdigit() else max(1, torch.cuda.device_count() * (kind == "cuda"))


def _of_gpu(precision: str) -> Precision:
    return "32-true" if precision == "32-true" else "bf16-mixed"


def _gpu_here() -> GPU:
    """The GPU of this machine, with the peak of the table's entry whose name it contains."""
    found = torch.cuda.get_device_properties(0)
    peaks = [gpu.peak for gpu in GPUS.values() if gpu.name in found.name]
    return GPU(found.name, found.total_memory, peaks[-1] if peaks else 0.0)


@functools.cache
def timed_speed(precision: Precision, threads: int | None = None) -> float:
    """FLOP/s of training steps of one layer on this CPU, which take a fraction of a second.

    ``threads``: of torch; by default as many as it uses now.
    """
    layer = ModelConfig(name="gpt2", size="layer", n_layer=1, n_head=8, d_model=512)
    vocab_size, length, before = 2048, 256, torch.get_num_threads()
    model, ids = Transformer(layer, vocab_size, 0), torch.zeros((1, length), dtype=torch.long)
    seconds = []
    try:
        torch.set_num_threads(threads or before)
        for _ in range(3):  # the first warms up
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = model(ids, ids, reduction="mean")
            loss.backward()
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    flops = flops_per_token(layer, count_parameters(layer, vocab_size), length)
    return flops.total * length / min(seconds[1:])
