"""The kind of machine that a run was trained on: on one kind, the same run gives the same numbers bit for bit.

Sums of matrix products are rounded in an order that depends on the instruction set, the number of threads and the
version of torch.  The summary of a run has these facts, under the names below; those of earlier versions lack some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ssa.progress import counted
from ssa.record.environment import cpu_model

if TYPE_CHECKING:
    from ssa.config import TrainerConfig


class Machine(NamedTuple):
    """What decides the last digits of a run.

    Attributes:
        device: ``cpu``, ``mps``, or ``cuda`` with the name of the GPU.
        precision: ``32-true`` or ``bf16-mixed``.
        cpu: name of the model.
        cpu_capability: the instruction set that torch uses, such as ``AVX2``.
        threads: of torch, in one process.
        torch: its version.
    """

    device: str
    precision: str
    cpu: str
    cpu_capability: str
    threads: int
    torch: str

    @classmethod
    def here(cls, config: TrainerConfig, threads: int | None = None) -> Self:
        """This machine, for a run with these settings; ``threads``: by default as many as this process has.

        Raises:
            UserError: the device is not available.
        """
        import torch

        from ssa.device import device_name, resolve_device, resolve_precision

        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        capability = torch.backends.cpu.get_cpu_capability()
        threads = threads or torch.get_num_threads()
        return cls(device_name(device), precision, cpu_model(), capability, threads, torch.__version__)

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Self | None:
        """From the summary of a run; None where a fact is missing."""
        found: dict[str, Any] = {name: summary.get(name) for name in cls._fields}
        if any(value is None or value != value for value in found.values()):
            return None
        threads = int(found["threads"])  # a float in a table of which other runs lack it
        return cls(**{**found, "threads": threads})

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cpu_capability}, {self.device}, {self.precision}, {counted(self.threads, 'threads')}, "
            f"torch {self.torch}"
        )
