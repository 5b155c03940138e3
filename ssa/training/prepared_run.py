"""A prepared run: everything it needs, built and checked before the run folder is written."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ssa.config import Config
from ssa.device import Precision
from ssa.model.transformer import Transformer
from ssa.text.token_blocks import EvaluationBatches
from ssa.text.token_cache import TokenizedCorpus, TokenSplit
from ssa.training.loaders import TrainingLoader


@dataclass(frozen=True)
class PreparedRun:
    """A run, ready to start."""

    config: Config
    device: torch.device
    precision: Precision
    attention_backend: str
    corpus: TokenizedCorpus
    splits: dict[str, TokenSplit]  # validation and test, up to data.max_eval_tokens
    model: Transformer
    loader: TrainingLoader
    weights_hash: str | None  # of the pretrained weights it starts from
    references: dict[str, float]  # validation perplexity of n-gram models, by name
    checkpoint_step: int | None  # the optimizer step it resumes from

    def evaluation_batches(self, split: str) -> EvaluationBatches:
        """Consecutive windows of a split, in micro-batches."""
        return EvaluationBatches(self.splits[split], self.config.data.block_size, self.config.trainer.micro_batch_size)
