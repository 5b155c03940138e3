"""A prepared run: everything it needs, built and checked before the run folder is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ssa.config import Config
from ssa.device import Precision
from ssa.model.transformer import Transformer
from ssa.record.checkpoint import ResumePoint
from ssa.record.inputs import Inputs
from ssa.text.token_blocks import Batch, EvaluationBatches, TrainingBatches
from ssa.text.token_cache import TokenizedCorpus, TokenSplit


class TrainingLoader:
    """All micro-batches of a run, in order: one pass is the whole training.

    Micro-batch m is a function of (data, seed, m), so the position is the only state.  Lightning saves and restores it
    with the checkpoint, and a resumed run reads the batches of an uninterrupted one.
    """

    def __init__(self, batches: TrainingBatches, micro_batch_size: int, steps: int, pinned: bool = False) -> None:
        self.batches = batches
        self.micro_batch_size = micro_batch_size
        self.pinned = pinned  # in memory that CUDA copies from while the CPU goes on
        self.length = steps * (batches.batch_size // micro_batch_size)
        self.position = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.length:
            self.position += 1
            batch = self.batches.micro_batch(self.position - 1, self.micro_batch_size)
            if self.pinned:
                batch = batch._replace(inputs=batch.inputs.pin_memory(), targets=batch.targets.pin_memory())
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


@dataclass(frozen=True)
class PreparedRun:
    """A run, ready to start."""

    config: Config
    device: torch.device
    precision: Precision
    attention_backend: str
    compiled: bool
    corpus: TokenizedCorpus
    splits: dict[str, TokenSplit]  # validation and test, up to data.max_eval_tokens
    model: Transformer
    loader: TrainingLoader
    inputs: Inputs
    references: dict[str, float]  # validation perplexity of n-gram models, by name
    resume: ResumePoint | None  # None: from step 0

    def evaluation_batches(self, split: str) -> EvaluationBatches:
        """Consecutive windows of a split, in micro-batches."""
        data, size = self.config.data, self.config.trainer.micro_batch_size
        return EvaluationBatches(self.splits[split], data.block_size, size, data.noise)
