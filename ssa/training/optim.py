"""Parameter groups, AdamW and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ssa.config import OptimConfig
from ssa.errors import UserError
from ssa.model.language_model import LanguageModel


def freeze(model: LanguageModel, config: OptimConfig) -> None:
    """Disable gradients of the parameters that ``optim.train`` excludes.

    Raises:
        UserError: no parameter is left to train.
    """
    if config.train == "all":
        return
    model.freeze_backbone()
    if not model.temperature_parameters():
        name = model.config.temperature.name
        raise UserError(f"optim.train=temperature: model/temperature={name} has no parameters; choose ssa, for example")


def parameter_groups(model: LanguageModel, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of all trainable parameters: matrices with weight decay, norms and biases without, temperatures without
    and with a learning rate of their own.  Empty groups are omitted.
    """
    names: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "temperature": []}
    temperatures = set(model.temperature_parameters().values())
    for parameter in model.parameters():
        if parameter.requires_grad:
            kind = "temperature" if parameter in temperatures else "decay" if parameter.ndim >= 2 else "no_decay"
            names[kind].append(parameter)
    settings = {
        "decay": {"lr": config.lr, "weight_decay": config.weight_decay},
        "no_decay": {"lr": config.lr, "weight_decay": 0.0},
        "temperature": {"lr": config.lr * config.temperature_lr_multiplier, "weight_decay": 0.0},
    }
    return [{"name": kind, "params": names[kind], **settings[kind]} for kind in names if names[kind]]


def build_optimizer(model: LanguageModel, config: OptimConfig, steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW over `parameter_groups`, and its schedule, to be stepped once per optimizer step."""
    betas = (config.beta1, config.beta2)
    optimizer = AdamW(parameter_groups(model, config), betas=betas, eps=config.eps, fused=True)
    return optimizer, LambdaLR(optimizer, lambda step: lr_factor(step, config, steps))


def lr_factor(step: int, config: OptimConfig, steps: int) -> float:
    """Factor of the learning rate at a step, counted from 0.

    Linear warm-up over ``warmup_steps``, then ``constant``, ``cosine`` decay to ``min_lr_ratio``, or ``wsd`` (warm-up,
    stable, decay): constant, then linear decay to ``min_lr_ratio`` over the last ``decay_fraction``.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, steps - round(config.decay_fraction * steps))
    done = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    share = 1 - done if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * done))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * share
