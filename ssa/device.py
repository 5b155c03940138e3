"""Device, precision and attention backend, with `auto` resolved for the hardware; peak memory."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ssa.config import TrainerConfig
from ssa.errors import UserError
from ssa.model.config import ModelConfig
from ssa.model.flex import MIN_HEAD_DIM

Precision = Literal["bf16-mixed", "32-true"]
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

_FEWEST_PROCESSES = 8  # that a CPU run may be divided among, on any machine

#: training FLOPs: a guess for a GPU, not measured; on two AVX2 cores compiled steps are no faster (docs/performance.md)
_WORTH_COMPILING = {"cuda": 1e16}


def resolve_device(name: str, field: str = "trainer.device") -> torch.device:
    """The device; ``auto``: cuda, else mps, else cpu.  Errors name ``field``.

    Raises:
        UserError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        valid = ", ".join(["auto", *(kind for kind, there in available.items() if there)])
        raise UserError(f"{field}={name}: not available on this machine; valid here: {valid}")
    return torch.device(name)


def resolve_devices(config: TrainerConfig) -> int:
    """Number of devices of this machine that a run started alone uses, each with a process of its own.

    Raises:
        UserError: there are fewer, or the run needs several machines, or a strategy that does not fit.
    """
    kind, setting = resolve_device(config.device).type, config.devices
    there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, max(_FEWEST_PROCESSES, os.cpu_count() or 1))
    devices = (there if kind == "cuda" else 1) if setting == "auto" else setting
    if config.nodes > 1:
        raise UserError(
            f"trainer.nodes={config.nodes}: each node needs its own start; use torchrun, or "
            "hydra/launcher=submitit_slurm on a Slurm cluster"
        )
    if devices > there:
        what = "processes at most on the CPU of this machine" if kind == "cpu" else f"{kind} devices on this machine"
        raise UserError(f"trainer.devices={setting}: {there} {what}; valid: 1 to {there}, or auto")
    if devices == 1 and config.strategy == "fsdp":
        raise UserError("trainer.strategy=fsdp: shards over several devices, and this run has one; valid: auto")
    return devices


def resolve_precision(name: str, device: torch.device) -> Precision:
    """``auto``: bf16-mixed if the hardware has fast bf16 matrix multiplication, else 32-true."""
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        fast = bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return "bf16-mixed" if name == "bf16-mixed" or (name == "auto" and fast) else "32-true"


def resolve_compile(setting: bool | Literal["auto"], device: torch.device, flops: float) -> bool:
    """``auto``: compile on a GPU if a run of ``flops`` floating-point operations is long enough to repay it."""
    return flops >= _WORTH_COMPILING.get(device.type, math.inf) if setting == "auto" else setting


def attention_kernels(name: str) -> AbstractContextManager[object]:
    """Restrict `scaled_dot_product_attention` to one backend; ``auto`` leaves the choice to torch."""
    return nullcontext() if name == "auto" else sdpa_kernel(BACKENDS[name])


def attention_backend(
    model: ModelConfig, trainer: TrainerConfig, length: int, device: torch.device, masked: bool = False
) -> str:
    """The backend that runs attention of this shape, dtype and dropout; ``masked``: within documents.

    A mask rules out CUDA's flash kernels: there ``auto`` is then ``flex``, FlexAttention, where that can be trained; it
    has no dropout.  On the CPU, a dense mask is faster than one call for each document, unless few rows have several.

    Raises:
        UserError: the requested backend does not support it.
    """
    if masked and uses_flex(model, trainer, device.type):
        return "flex"
    dtype = torch.bfloat16 if resolve_precision(trainer.precision, device) == "bf16-mixed" else torch.float32
    shape = (trainer.micro_batch_size, model.n_head, length, model.head_dim)
    query = torch.empty(shape, device=device, dtype=dtype, requires_grad=True)
    key = query[:, : model.n_kv_head]
    mask = torch.empty((shape[0], 1, length, length), device=device, dtype=torch.bool) if masked else None
    how: dict[str, Any] = {"dropout_p": model.dropout, "is_causal": not masked}
    how["enable_gqa"] = model.n_kv_head != model.n_head
    wanted, choice = trainer.attention_backend, SDPBackend.ERROR.value
    if device.type == "mps":  # torch has only one backend there, and no query for it
        choice = SDPBackend.MATH.value
    else:
        with attention_kernels(wanted), suppress(RuntimeError):  # no viable backend
            choice = torch._fused_sdp_choice(query, key, key, attn_mask=mask, **how)
    names = {backend.value: kind for kind, backend in BACKENDS.items()}
    if choice not in names or (wanted != "auto" and names[choice] != wanted):
        what = f"{device.type}, {dtype}" + (", data.document_mask=true" if masked else "")
        raise UserError(f"trainer.attention_backend={wanted}: not supported here ({what}); auto and math always are")
    return names[choice]


def uses_flex(model: ModelConfig, trainer: TrainerConfig, kind: str) -> bool:
    """Whether attention within documents is trained by FlexAttention on a kind of device; see `attention_backend`."""
    trainable = model.hf_config is None and not model.dropout and model.head_dim >= MIN_HEAD_DIM
    return kind == "cuda" and trainer.attention_backend == "auto" and trainable


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is why; CPU and MPS raise a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|allocate memory", str(error)))


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of `peak_memory_bytes`, where the system supports it: CUDA, Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: allocated on the CUDA device, else the peak resident set size of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    """``cpu``, ``mps``, or ``cuda`` with the name of the GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
