"""The LightningModule: losses, metrics, and when each is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from ssa.config import Config
from ssa.device import attention_kernels
from ssa.errors import NotFinite, TrainingDiverged
from ssa.model.attention_stats import MEANS, attention_metrics, attention_statistics
from ssa.model.language_model import LanguageModel
from ssa.model.sharding import gathered
from ssa.model.temperature_reach import temperature_reach
from ssa.perplexity import perplexities
from ssa.record.run_files import Row
from ssa.text.token_blocks import Batch, probe_windows, visible_in_documents
from ssa.text.token_cache import TokenSplit
from ssa.training.optim import build_optimizer
from ssa.training.world import WORLD_OF_ONE, World


class LanguageModule(L.LightningModule):
    """Trains a language model and passes rows of metrics to ``log_row``.

    Args:
        config: the run.
        model: the model.
        splits: ``validation`` and ``test``.  Perplexities divide by their counts; attention is measured on the first
            windows of ``validation``.
        log_row: called with each row: ``step``, ``tokens``, then metrics.
        compiled: whether the model's blocks are compiled.
        base: hash of the pretrained weights that checkpoints refer to, in place of the tensors that are not trained.
        world: the processes of the run.
        sharded: whether the model is divided among them.
    """

    def __init__(
        self,
        config: Config,
        model: LanguageModel,
        splits: dict[str, TokenSplit],
        log_row: Callable[[Row], None],
        compiled: bool = False,
        base: str | None = None,
        world: World = WORLD_OF_ONE,
        sharded: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.splits = splits
        self.log_row = log_row
        self.compiled = compiled
        self.base = base
        self.world, self.sharded = world, sharded
        self.probe = probe_windows(splits["validation"].tokens, config.data.block_size, config.trainer.probe_sequences)
        self.end_of_text = splits["validation"].tokenizer.end_of_text
        self.evaluated: dict[str, float] = {}  # the newest evaluation, by metric name without the split
        self.evaluated_step: int | None = None  # of that evaluation, on the validation split
        self.last_checkpoint = "none"  # for the error if training diverges
        self.n_rows = 0  # in metrics.jsonl
        self._recorded = False  # whether an evaluation outside training is logged
        self.stop_requested: Callable[[], bool] = lambda: False  # whether a signal has reached this process
        self._stops = False
        self.trained: dict[str, float] = {}  # loss, gradient norm and learning rate of the newest step
        self._nll = 0.0
        self._losses: list[Tensor] = []  # of this step's micro-batches
        self._unread: list[tuple[int, float, Tensor]] = []  # step, learning rate, and loss and gradient norm

    @property
    def step(self) -> int:
        """Optimizer steps so far."""
        return self.trainer.global_step

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.step * self.config.trainer.batch_size * self.config.data.block_size

    @property
    def stops(self) -> bool:
        """Whether training is to be interrupted: the same in all processes, as of the last `read_losses`."""
        return self._stops if self.world.size > 1 else self.stop_requested()

    def configure_model(self) -> None:
        """Nothing: a model to be sharded has been, before its weights were read.  Lightning requires it."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = build_optimizer(self.model, self.config.optim, self.config.trainer.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        if self.sharded:  # gradients are summed over devices in the last micro-batch of a step
            whole: Any = self.model
            whole.set_requires_gradient_sync((index + 1) % self.trainer.accumulate_grad_batches == 0)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Mean loss of a micro-batch; all have one size, so that their mean is that of the batch."""
        with attention_kernels(self.config.trainer.attention_backend):
            loss: Tensor = self.model(
                batch.inputs,
                batch.targets,
                visible_keys=self._visible_keys(batch.inputs),
                dropout_seeds=self._dropout_seeds(batch),
                reduction="mean",
            )
        self._losses.append(loss.detach())
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The backward pass, in which checkpointed blocks run again: with the same kernels."""
        with attention_kernels(self.config.trainer.attention_backend):
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip gradients to ``optim.grad_clip``; their norm before is read with the loss, see `read_losses`."""
        limit = self.config.optim.grad_clip or math.inf
        grad_norm = gathered(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        first = optimizer.param_groups[0]
        lr = self.config.optim.lr * first["lr"] / first["initial_lr"]  # independent of the group
        self._unread.append((self.step, lr, torch.stack([torch.stack(self._losses).mean(), grad_norm])))
        self._losses.clear()
        if self.step == 0 or not _computes_ahead(self.device):
            self.read_losses()

    def read_losses(self) -> None:
        """Fill ``trained``, waiting for the device: after each step, on CUDA before rows, evaluations and checkpoints.

        Raises:
            NotFinite: the first loss or gradient norm is not finite.
            TrainingDiverged: a later one.
        """
        if not self._unread:
            return
        measured = torch.stack([measured for *_, measured in self._unread])
        if self.world.size > 1:
            stop = measured.new_tensor([float(self.stop_requested())])
            totals = self.world.total(torch.cat([measured[:, 0], stop]))
            measured[:, 0] = totals[:-1] / self.world.size
            self._stops |= bool(totals[-1] > 0)
        values = measured.tolist()
        for (step, lr, _), (loss, grad_norm) in zip(self._unread, values, strict=True):
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                if step == 0:
                    raise NotFinite(*(("loss", loss) if not math.isfinite(loss) else ("gradient norm", grad_norm)))
                raise TrainingDiverged(step + 1, loss, lr, grad_norm, self.last_checkpoint)
            self.trained = {"train/loss": loss, "train/grad_norm": grad_norm, "train/lr": lr}
        self._unread.clear()

    def on_validation_epoch_start(self) -> None:
        self.read_losses()
        self._nll = 0.0

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: Batch, index: int) -> None:
        """Add the losses of a batch; sums over batches are in float64."""
        settings = self.config.trainer
        full = batch.inputs.shape == (settings.micro_batch_size, self.config.data.block_size)
        # The shorter rest is not worth a compilation.
        with attention_kernels(settings.attention_backend), nullcontext() if full else self._eager():
            losses = self.model(batch.inputs, batch.targets, visible_keys=self._visible_keys(batch.inputs))
        self._nll += losses.sum().item() if batch.counted else 0.0

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Perplexities of the split and attention statistics of the probe; logged during training."""
        self.evaluated = self._perplexities("validation")
        with self.trainer.precision_plugin.forward_context(), self._eager():
            probe = self.probe.to(self.device)
            with temperature_reach(self.model) as reach:
                self.evaluated |= self._attention(probe)
            self.evaluated |= reach
        self.evaluated_step = self.step
        if self.reported:
            row = {f"val/{name}": value for name, value in self.evaluated.items()}
            self.log_row({"step": self.step, "tokens": self.tokens, **row})

    def _attention(self, probe: Tensor) -> dict[str, float]:
        """Attention metrics; nan where attention cannot be measured."""
        if not self.model.uniform:
            self.model.hidden(probe, visible_keys=self._visible_keys(probe))
            return {f"attention_{name}": math.nan for name in MEANS}
        return attention_metrics(attention_statistics(self.model, probe, self._visible_keys(probe)))

    @contextmanager
    def before_training(self) -> Iterator[None]:
        """Log the evaluation in this block as that of step 0, the start of a pretrained model."""
        self._recorded = True
        yield
        self._recorded = False

    @property
    def reported(self) -> bool:
        """Whether the current evaluation belongs to training or to step 0."""
        return self._recorded or self.trainer.state.fn == "fit"

    def on_test_epoch_end(self) -> None:
        self.evaluated = self._perplexities("test")

    def _eager(self) -> AbstractContextManager[object]:
        """Within it, compiled blocks run as they are written."""
        return torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()

    def _visible_keys(self, ids: Tensor) -> Tensor | None:
        """Number of visible keys of each token, (B, T); None: all up to itself."""
        return visible_in_documents(ids, self.end_of_text) if self.config.data.document_mask else None

    def _dropout_seeds(self, batch: Batch) -> Tensor | None:
        """Seeds of all dropout masks, (B, sites): functions of (seed, sample), so that resuming is exact, and masks do
        not depend on micro-batch size or number of devices.  None: without dropout.
        """
        if not self.config.model.dropout:
            return None
        samples = range(batch.first_sample, batch.first_sample + len(batch.inputs))
        sequences = (np.random.SeedSequence((self.config.seed, sample)) for sample in samples)
        seeds = [each.generate_state(self.model.n_dropout_sites) for each in sequences]
        return torch.from_numpy(np.stack(seeds).astype(np.int64))

    def _perplexities(self, name: str) -> dict[str, float]:
        split = self.splits[name]
        self._nll = float(self.world.total(torch.tensor(self._nll, dtype=torch.float64)))
        counts = {"words": split.n_words, "n_bytes": split.n_bytes}
        return perplexities(self._nll, tokens=split.n_tokens - 1, **counts, lossless=split.lossless)

    def stored(self) -> dict[str, Any]:
        """What checkpoints hold of the model: all tensors, or those of the temperatures and the hash of the others."""
        if self.base is None:
            return {"model": self.model.state_dict()}
        return {"model": self.model.temperature_state(), "base": self.base}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = self.stored()
        tensors = {f"model.{name}": tensor for name, tensor in stored.pop("model").items()}
        checkpoint |= {"state_dict": tensors, **stored, "config": self.config.recorded(), "rows": self.n_rows}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        _count_in(checkpoint, self.trainer.accumulate_grad_batches)
        if "base" in checkpoint and "state_dict" in checkpoint:  # the model has been loaded from it
            checkpoint["state_dict"] = {**self.state_dict(), **checkpoint["state_dict"]}


def _count_in(checkpoint: dict[str, Any], accumulate: int) -> None:
    """Count micro-batches as this process has them: another number of devices has more or fewer in a step."""
    loop = checkpoint["loops"]["fit_loop"]
    before = loop["epoch_loop.batch_progress"]["current"]["ready"]
    after = checkpoint["global_step"] * accumulate
    for progress in (loop["epoch_loop.batch_progress"][span] for span in ("total", "current")):
        progress |= {name: number + after - before for name, number in progress.items()}  # some lag behind by one
    for loader in loop["state_dict"]["combined_loader"]:
        loader["position"] += after - before


def _computes_ahead(device: torch.device) -> bool:
    """Whether reading a value waits for queued work, so that it should be rare."""
    return device.type == "cuda"
