"""A prepared run: everything it needs, built and checked before the run folder is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ssa.config import Config, TrainerConfig
from ssa.device import Precision
from ssa.model.language_model import LanguageModel
from ssa.planning.strategy import Strategy
from ssa.record.inputs import Inputs
from ssa.record.resume_point import ResumePoint
from ssa.text.token_blocks import Batch, EvaluationBatches, TrainingBatches
from ssa.text.token_cache import TokenizedCorpus, TokenSplit
from ssa.training.world import WORLD_OF_ONE, World


class TrainingLoader:
    """All micro-batches of a process, in order: one pass is the whole training.

    Sample s of a run is a function of (data, seed, s), and a batch is a row of samples, of which each process takes its
    share.  So the position is the only state.  Lightning saves and restores it with the checkpoint, and a resumed run
    reads the batches of an uninterrupted one.
    """

    def __init__(
        self, batches: TrainingBatches, config: TrainerConfig, world: World = WORLD_OF_ONE, pinned: bool = False
    ) -> None:
        self.batches = batches
        self.micro_batch_size, self.accumulate = config.micro_batches(world.size)
        self.pinned = pinned  # in memory that CUDA copies from while the CPU goes on
        self.length = config.steps * self.accumulate
        self.position = 0
        self._world = world

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        while self.position < self.length:
            step, number = divmod(self.position, self.accumulate)
            self.position += 1
            number += (step * self._world.size + self._world.rank) * self.accumulate  # among all processes
            batch = self.batches.micro_batch(number, self.micro_batch_size)
            if self.pinned:
                batch = batch._replace(inputs=batch.inputs.pin_memory(), targets=batch.targets.pin_memory())
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


class EvaluationLoader:
    """The share of a process of `EvaluationBatches`: every n-th, and as many as the others, as sharded models need.

    The batches that fill it up are those of another process, and not counted.
    """

    def __init__(self, batches: EvaluationBatches, world: World = WORLD_OF_ONE) -> None:
        self.batches, self.world = batches, world

    def __len__(self) -> int:
        return -(-len(self.batches) // self.world.size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.batches), self.world.size):
            number = first + self.world.rank
            counted = number < len(self.batches)
            inputs, targets = self.batches[number if counted else first]
            yield Batch(inputs, targets, counted=counted)


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
    model: LanguageModel
    world: World
    strategy: Strategy
    loader: TrainingLoader
    inputs: Inputs
    references: dict[str, float]  # validation perplexity of n-gram models, by name
    resume: ResumePoint | None  # None: from step 0

    def evaluation_batches(self, split: str) -> EvaluationLoader:
        """Consecutive windows of a split, in micro-batches."""
        data, size = self.config.data, self.config.trainer.micro_batch_size
        return EvaluationLoader(EvaluationBatches(self.splits[split], data.block_size, size, data.noise), self.world)
