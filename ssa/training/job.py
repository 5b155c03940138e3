"""What a run needs, built and checked before anything is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ssa.config import Config
from ssa.device import Precision
from ssa.model.transformer import Transformer
from ssa.text.token_cache import TokenizedCorpus, TokenSplit
from ssa.training.loaders import EvaluationLoader, TrainingLoader


@dataclass(frozen=True)
class Job:
    """A run, ready to start."""

    config: Config
    device: torch.device
    precision: Precision
    attention_backend: str
    corpus: TokenizedCorpus
    splits: dict[str, TokenSplit]  # validation and test, as far as they are evaluated
    model: Transformer
    loader: TrainingLoader
    weights_hash: str | None  # of the pretrained weights that it starts from
    references: dict[str, float]  # perplexities of n-gram models on the validation split, by their name
    checkpoint_step: int | None  # the optimizer step that this attempt goes on from

    def evaluation_loader(self, split: str) -> EvaluationLoader:
        """A split's consecutive windows, a micro-batch at a time."""
        return EvaluationLoader(self.splits[split], self.config.data.block_size, self.config.trainer.micro_batch_size)
