"""The training data as Lightning iterates over it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ssa.text.token_blocks import TrainingBatches

Batch = tuple[Tensor, Tensor]  # inputs and targets, (B, T) each


class TrainingLoader:
    """All micro-batches of a run, in order: one pass is the whole training.

    Micro-batch m is a function of (data, seed, m), so the position is the only state.  Lightning saves and restores it
    with the checkpoint, and a resumed run reads the batches of an uninterrupted one.
    """

    def __init__(self, batches: TrainingBatches, micro_batch_size: int, steps: int) -> None:
        self.batches = batches
        self.micro_batch_size = micro_batch_size
        self.length = steps * (batches.batch_size // micro_batch_size)
        self.position = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.length:
            self.position += 1
            yield self.batches.micro_batch(self.position - 1, self.micro_batch_size)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
