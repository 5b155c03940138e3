"""The strategy over several devices: ddp where a copy of the model fits each device, else fsdp."""

from __future__ import annotations

from typing import NamedTuple

from ssa.config import Config
from ssa.planning.hardware import Device, planned_device
from ssa.planning.memory import DeviceShare, memory_parts, step_bytes
from ssa.planning.parameters import count_parameters

MARGIN = 0.9  # of a device's memory that a plan may fill: allocators hold more than tensors take


class Strategy(NamedTuple):
    """``ddp``, ``fsdp``, or ``auto`` on a single device, where Lightning needs none; and the reason in one line."""

    name: str
    reason: str


def choose_strategy(config: Config, vocab_size: int, device: Device | None = None) -> Strategy:
    """Resolve ``trainer.strategy``.

    Args:
        config: the run.
        vocab_size: V of its model.
        device: each of its devices; by default as `planned_device`.
    """
    device = device or planned_device(config)
    share = DeviceShare.of(config, device.kind)
    if share.devices == 1:
        return Strategy("auto", "a single device")
    if config.model.hf_config is not None:
        return Strategy("ddp", "a model of transformers is not divided")
    if config.trainer.strategy != "auto":
        return Strategy(config.trainer.strategy, f"trainer.strategy={config.trainer.strategy}")
    if device.memory is None:
        return Strategy("ddp", "the memory of a device is not known")
    parameters = count_parameters(config.model, vocab_size, config.optim.train == "temperature")
    step = step_bytes(config, vocab_size, device, share)
    needed = sum(memory_parts(parameters, step, device, share.devices, "ddp").values())
    has = f"{needed / 1e9:,.1f} GB for a device of {device.memory / 1e9:,.0f} GB"
    if needed <= MARGIN * device.memory:
        return Strategy("ddp", f"everything fits on each device: {has}")
    return Strategy("fsdp", f"a copy on each device would be too large: {has}")
