"""Bytes on disk: checkpoints, and the cache of tokens if it is there."""

from __future__ import annotations

from typing import NamedTuple

from ssa.config import Config
from ssa.planning.parameters import Parameters

FLOAT = 4  # bytes of float32: weights, gradients and both moments of AdamW


class Checkpoints(NamedTuple):
    """Bytes of the checkpoints of a run."""

    training: int  # at most, while it trains
    finished: int
    best: int  # of the best weights alone


def checkpoints(config: Config, parameters: Parameters) -> Checkpoints:
    """``last`` and ``previous`` hold weights and optimizer state, ``best`` weights; a new ``best`` replaces the old one
    when it is complete.  With ``optim.train=temperature`` of a pretrained model, they hold the temperatures alone.
    """
    alone = config.optim.train == "temperature" and config.init_from is not None
    weights = FLOAT * (parameters.temperature if alone else parameters.total)
    last = weights + 2 * FLOAT * parameters.trained
    return Checkpoints(2 * last + 2 * weights, weights + (last if config.trainer.keep_last else 0), weights)
