"""Runs that train a tiny model for eight steps, and what is in their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ssa.config import Config
from ssa.training.lit_module import LanguageModule

MODEL = ["model.n_layer=2", "model.n_head=2", "model.d_model=32"]
TINY = [*MODEL, "trainer.steps=8", "trainer.eval_every=4", "trainer.checkpoint_every=2", "trainer.log_every=1"]
TINY += ["trainer.batch_size=4", "trainer.micro_batch_size=2", "optim.warmup_steps=2", "optim.lr=3e-3"]
TINY += ["data.max_eval_tokens=4096", "trainer.keep_last=true"]
TIMINGS = ("tokens_per_second", "memory", "seconds")


def tiny_config(smoke: Callable[..., Config]) -> Callable[..., Config]:
    """A fixture: a function that makes a config of a tiny run, with overrides as typed."""
    return lambda *overrides: smoke(*TINY, *overrides)


def folder(config: Config) -> Path:
    return Path(config.output_dir) / config.experiment / config.run_id


def rows(config: Config) -> list[dict]:
    return [json.loads(line) for line in (folder(config) / "metrics.jsonl").read_text().splitlines()]


def numbers(config: Config) -> list[dict]:
    """The rows without times and memory."""
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMINGS)} for row in rows(config)]


def weights(config: Config, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder(config) / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"] if name == "last" else checkpoint["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def broken_at(step: int) -> Callable[..., None]:
    """In place of `LanguageModule.on_train_batch_start`: ends training before a step, as an error would."""
    original = LanguageModule.on_train_batch_start

    def hooked(self: LanguageModule, *arguments: Any) -> None:
        if self.step == step:
            raise ZeroDivisionError
        original(self, *arguments)

    return hooked
