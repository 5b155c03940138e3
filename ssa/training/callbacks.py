"""Lightning callbacks: metric rows, checkpoints, interruption, progress."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ssa.config import TrainerConfig
from ssa.device import peak_memory_bytes
from ssa.errors import EXIT_INTERRUPTED, NotFinite, TrainingDiverged
from ssa.processes import TIME_WARNINGS, requeue, termination_signals
from ssa.progress import ProgressBar
from ssa.record import sharded_checkpoint
from ssa.record.checkpoint import read, save
from ssa.training.lit_module import LanguageModule


class Interrupted(Exception):
    """Training stopped between two steps on a signal, after saving a checkpoint."""


class Interruption(Callback):
    """Records SIGINT, SIGTERM, SIGHUP, and Slurm's SIGUSR1 and SIGUSR2; a second signal exits without waiting for the
    step to end.
    """

    def __init__(self) -> None:
        self.requested = False
        self._signals = (signal.SIGINT, *termination_signals(), *TIME_WARNINGS)
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle the signals within the block."""
        self._before = {number: signal.getsignal(number) for number in self._signals}
        self._install()
        try:
            yield
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def on_train_start(self, *_: Any, **__: Any) -> None:
        self._install()  # again: Lightning has installed a handler, which would stop within a step, without saving

    on_validation_start = on_test_start = on_train_start

    def on_test_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        alone = trainer.world_size == 1  # others would wait for this process
        if self.requested and trainer.state.fn != "fit" and alone:  # after training nothing is left to save
            raise Interrupted

    on_validation_batch_end = on_test_batch_end

    def requeue(self) -> None:
        """Once training has been saved: see `ssa.processes.requeue`."""
        if self._received is not None:
            requeue(self._received, self._before[self._received])

    def _install(self) -> None:
        for number in self._signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise SystemExit(EXIT_INTERRUPTED)
        self.requested, self._received = True, number


class TrainingRows(Callback):
    """Logs a row of training metrics every ``log_every`` steps.  Must be the first callback: checkpoints follow rows.

    Attributes:
        seconds: training time of all attempts, including data, without evaluations and checkpoints.
        tokens_per_second: since the last row.
    """

    def __init__(self, config: TrainerConfig) -> None:
        self.config = config
        self.seconds = 0.0
        self.tokens_per_second = math.nan
        self._started: float | None = None  # None while the clock is stopped
        self._last = (0, 0.0)  # tokens and seconds at the last row

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        self._last = (module.tokens, self.seconds)  # speed is that of this attempt

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        # A running clock is kept: kernels of the last step may still be running.
        self._started = self._started or time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        assert isinstance(module, LanguageModule)
        whole = (index + 1) % trainer.accumulate_grad_batches == 0
        logged = whole and (module.step % self.config.log_every == 0 or module.step == self.config.steps)
        if logged:
            module.read_losses()  # before the clock is read: it waits for the device
        now = time.perf_counter()
        self.seconds += now - (self._started or now)
        self._started = now
        if not whole:
            return
        tokens, seconds = self._last
        self.tokens_per_second = (module.tokens - tokens) / (self.seconds - seconds)
        if logged:
            self._last = (module.tokens, self.seconds)
            measured = {
                "train/tokens_per_second": self.tokens_per_second,
                "train/peak_memory_bytes": peak_memory_bytes(module.device),
            }
            module.log_row({"step": module.step, "tokens": module.tokens, **module.trained, **measured})

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        self._started = None

    on_save_checkpoint = on_validation_start

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]


class Checkpoints(Callback):
    """Saves ``last``, to resume from, and ``best``, the weights with the lowest validation loss; both atomically.

    At a step with a validation the checkpoint follows it, so that a resumed run does not lack its row.
    """

    def __init__(self, last: Path, best: Path, config: TrainerConfig) -> None:
        self.last, self.best, self.config = last, best, config
        self.best_loss = float("inf")
        self.best_step = 0

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        assert isinstance(module, LanguageModule)
        step = trainer.global_step
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        if step == self.config.steps:
            trainer.should_stop = True  # makes Lightning validate after the last step
        if step % self.config.eval_every == 0 or step == self.config.steps:
            return
        if step % self.config.checkpoint_every == 0 or module.stops:
            self._save(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        if not module.reported:
            return
        loss = module.evaluated["loss"]
        if not math.isfinite(loss):
            if not module.trained:  # step 0
                raise NotFinite(f"init_from={module.config.init_from}: validation loss of step 0", loss)
            lr, grad_norm = module.trained["train/lr"], module.trained["train/grad_norm"]
            raise TrainingDiverged(trainer.global_step, loss, lr, grad_norm, module.last_checkpoint)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, trainer.global_step
            stored = module.stored()
            if module.sharded:
                stored["model"] = sharded_checkpoint.whole(stored["model"], self.best.parent)
            if module.world.is_zero:
                save({**stored, "config": module.config.recorded(), "step": self.best_step}, self.best)
        if trainer.state.fn == "fit":
            self._save(trainer, module)

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        module.read_losses()  # no checkpoint of weights that are not finite
        trainer.save_checkpoint(self.last)
        module.last_checkpoint = str(self.last)
        if module.stops:
            raise Interrupted

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "best_step": self.best_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_loss, self.best_step = state["best_loss"], state["best_step"]


class CheckpointFile(TorchCheckpointIO):
    """Writes a checkpoint once, in its place, and keeps the one before; Lightning's goes through memory and $TMPDIR."""

    def __init__(self, previous: Path) -> None:
        self.previous = previous

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        save(checkpoint, Path(path), self.previous)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        if Path(path).is_dir():
            return sharded_checkpoint.read(Path(path))
        # Copies: the optimizer keeps its tensors, and mapped ones would keep the space of a replaced file in use.
        copied: dict[str, Any] = tree_map_only(Tensor, torch.clone, read(Path(path)))
        return copied


class TrainingProgress(Callback):
    """Optimizer steps, loss, tokens/s and time left: a live bar on a terminal, a line at intervals elsewhere."""

    def __init__(self, console: Console, config: TrainerConfig, rows: TrainingRows) -> None:
        self.console, self.config, self.rows = console, config, rows
        self.bar: ProgressBar | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar = ProgressBar("step", self.config.steps, completed=trainer.global_step, console=self.console)
        self.bar.start()
        self.began = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        assert isinstance(module, LanguageModule)
        assert self.bar is not None
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        speed = self.rows.tokens_per_second
        text = f"{step}/{self.config.steps}  loss {module.trained['train/loss']:.3f}  {speed:,.0f} tokens/s"
        done = step - self.began
        early = done == 1 + self.config.log_every  # for a first estimate of the time left
        self.bar.update(step, text, line=early or step % (10 * self.config.log_every) == 0)
        if done == 1:  # the first step warms up, or compiles
            self.bar.restart_clock()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, LanguageModule)
        if not module.reported:
            return
        now = module.evaluated
        text = f"perplexity {now['perplexity']:.2f}"
        if "bits_per_byte" in now:  # the tokenizer restores the text
            text += f"  bits/byte {now['bits_per_byte']:.3f}"
        entropy = f"entropy {now['attention_entropy']:.3f} nats  spikiness {now['attention_spikiness']:.3f}"
        self.console.print(f"step {trainer.global_step}: validation  {text}  {entropy}", highlight=False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    on_exception = on_train_end
