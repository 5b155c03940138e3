"""Ranks that count the collectives of their training, by kind, or fail in it."""

from __future__ import annotations

import json
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ssa.launch.ranks import _train

COUNTS = "collectives.json"  # in the output folder: the counts of rank 0, of each micro-batch


def profiled(values: dict[str, Any], command: tuple[str, ...], place: dict[str, str], parent: Connection) -> int:
    from lightning import LightningModule, Trainer
    from torch.profiler import ProfilerActivity, profile

    from ssa.training.callbacks import TrainingRows

    counts: list[Counter[str]] = []
    started: list[profile] = []
    start, end = TrainingRows.on_train_batch_start, TrainingRows.on_train_batch_end

    def began(rows: TrainingRows, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        started.append(profile(activities=[ProfilerActivity.CPU]))
        started[-1].__enter__()
        start(rows, trainer, module, batch, index)

    def ended(rows: TrainingRows, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        end(rows, trainer, module, out, batch, index)
        started[-1].__exit__(None, None, None)
        names = (event.name for event in started[-1].events())
        counts.append(Counter(name for name in names if name.startswith("gloo:")))

    TrainingRows.on_train_batch_start = began  # type: ignore[method-assign]
    TrainingRows.on_train_batch_end = ended  # type: ignore[method-assign]
    code = _train(values, command, place, parent)
    if place["RANK"] == "0":
        Path(values["output_dir"], COUNTS).write_text(json.dumps(counts))
    return code


FAILURE = "the disk of rank 1 is gone"


def failing(values: dict[str, Any], command: tuple[str, ...], place: dict[str, str], parent: Connection) -> int:
    """Rank 1 raises an error in its third step."""
    from ssa.errors import UserError
    from ssa.training.lit_module import LanguageModule

    step = LanguageModule.training_step

    def fails(module: LanguageModule, *arguments: Any) -> Any:
        if module.global_step == 2 and place["RANK"] == "1":
            raise UserError(FAILURE)
        return step(module, *arguments)

    LanguageModule.training_step = fails  # type: ignore[method-assign]
    return _train(values, command, place, parent)
