"""The LightningModule: losses, what is measured when, and nothing of the model's mathematics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ssa.config import Config
from ssa.device import attention_kernels
from ssa.errors import TrainingDiverged
from ssa.model.attention_stats import attention_metrics, attention_statistics
from ssa.model.transformer import Transformer
from ssa.perplexity import perplexities
from ssa.text.token_blocks import probe_windows, visible_in_documents
from ssa.text.token_cache import TokenSplit
from ssa.training.loaders import Batch
from ssa.training.optim import build_optimizer

Row = dict[str, Any]


class LanguageModule(L.LightningModule):
    """Trains a `Transformer` and hands rows of metrics to ``log_row``.

    Args:
        config: the run.
        model: the transformer.
        splits: the evaluated splits by name, ``validation`` and ``test``: their counts are what perplexities divide
            by, and the first windows of ``validation`` are the batch that attention is measured on.
        log_row: takes each row: ``step``, ``tokens``, then metrics.
    """

    def __init__(
        self, config: Config, model: Transformer, splits: dict[str, TokenSplit], log_row: Callable[[Row], None]
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.splits = splits
        self.log_row = log_row
        self.probe = probe_windows(splits["validation"].tokens, config.data.block_size, config.trainer.probe_sequences)
        self.end_of_text = splits["validation"].tokenizer.end_of_text
        self.evaluated: dict[str, float] = {}  # the newest evaluation, by metric name without its split
        self.last_checkpoint = "none"  # named when training diverges
        self._recorded = False  # whether an evaluation outside training goes into the record
        self.trained: dict[str, float] = {}  # the newest step's loss, gradient norm and learning rate
        self._nll = 0.0
        self._losses: list[Tensor] = []  # of the micro-batches of this step

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.trainer.global_step

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.config.trainer.batch_size * self.config.data.block_size

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule, stepped once an optimizer step."""
        optimizer, schedule = build_optimizer(self.model, self.config.optim, self.config.trainer.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Dropout, the only randomness in a step, is a function of (seed, micro-batch) too: resuming is exact."""
        torch.manual_seed(int(np.random.SeedSequence((self.config.seed, index)).generate_state(1)[0]))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean loss of a micro-batch; all are of one size, so that their mean is the big batch's."""
        with attention_kernels(self.config.trainer.attention_backend):
            loss: Tensor = self.model(*batch, visible_keys=self._visible_keys(batch[0])).mean()
        self._losses.append(loss.detach())
        return loss

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips to ``optim.grad_clip``, keeps the norm before it, and stops on what is not finite."""
        limit = self.config.optim.grad_clip or math.inf
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        loss = torch.stack(self._losses).mean().item()
        first = optimizer.param_groups[0]
        lr = self.config.optim.lr * first["lr"] / first["initial_lr"]  # the common one, whichever group is first
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise TrainingDiverged(self.step + 1, loss, lr, grad_norm, self.last_checkpoint)
        self.trained = {"train/loss": loss, "train/grad_norm": grad_norm, "train/lr": lr}
        self._losses.clear()

    def on_validation_epoch_start(self) -> None:
        """Starts the sum over the split."""
        self._nll = 0.0

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, index: int) -> None:
        """Adds a window's losses; summed in float64 over windows."""
        settings = self.config.trainer
        full = batch[0].shape == (settings.micro_batch_size, self.config.data.block_size)
        losses = self.model if full else self.model.forward  # what is left over is not worth a compilation
        with attention_kernels(settings.attention_backend):
            self._nll += losses(*batch, visible_keys=self._visible_keys(batch[0])).sum().item()

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """The split's perplexities and the probe's attention; a row if training is under way."""
        self.evaluated = self._perplexities("validation")
        with self.trainer.precision_plugin.forward_context():
            probe = self.probe.to(self.device)
            self.evaluated |= attention_metrics(attention_statistics(self.model, probe, self._visible_keys(probe)))
        if self.reported:
            row = {f"val/{name}": value for name, value in self.evaluated.items()}
            self.log_row({"step": self.step, "tokens": self.tokens, **row})

    @contextmanager
    def before_training(self) -> Iterator[None]:
        """An evaluation in the block is that of step 0, a row of the record: what a pretrained model starts from."""
        self._recorded = True
        yield
        self._recorded = False

    @property
    def reported(self) -> bool:
        """Whether the evaluation under way is one of training's, or of step 0."""
        return self._recorded or self.trainer.state.fn == "fit"

    def on_test_epoch_end(self) -> None:
        """The split's perplexities."""
        self.evaluated = self._perplexities("test")

    def _visible_keys(self, ids: Tensor) -> Tensor | None:
        """What each token sees, None for all before it; (B, T)."""
        return visible_in_documents(ids, self.end_of_text) if self.config.data.document_mask else None

    def _perplexities(self, name: str) -> dict[str, float]:
        split = self.splits[name]
        return perplexities(self._nll, tokens=split.n_tokens - 1, words=split.n_words, n_bytes=split.n_bytes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The run's config travels with its weights, as plain values."""
        checkpoint["config"] = self.config.plain()
