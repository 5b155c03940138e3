"""Convergence speed: tokens that training runs need to reach a loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Validation losses of one run, in nats per token, and the training tokens at each, ascending."""

    tokens: Sequence[float]
    losses: Sequence[float]

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Curve:
        """From rows of metrics.jsonl, of which some have no validation."""
        measured = [row for row in rows if "val/loss" in row]
        return cls([row["tokens"] for row in measured], [row["val/loss"] for row in measured])


def tokens_to_reach(curve: Curve, loss: float) -> float:
    """Tokens at which a linearly interpolated curve first reaches a loss; nan if it never does.

    If the first validation is already at or below the loss, its tokens.
    """
    tokens, losses = np.asarray(curve.tokens, float), np.asarray(curve.losses, float)
    below = np.flatnonzero(losses <= loss)
    if below.size == 0:
        return float("nan")
    after = int(below[0])
    if after == 0:
        return float(tokens[0])
    share = (losses[after - 1] - loss) / (losses[after - 1] - losses[after])
    return float(tokens[after - 1] + share * (tokens[after] - tokens[after - 1]))


def speed_up(baseline: Curve, other: Curve) -> float:
    """Ratio of tokens, baseline over other, to the lowest loss that both reach; above 1 the other is faster.

    The target is the higher of the two minima, so that every pair of runs has a ratio.  nan where the target is reached
    at step 0: one of the runs never improves on its initial loss; and where a curve is empty, as of a damaged run.
    """
    if not (baseline.losses and other.losses):
        return float("nan")
    target = max(min(baseline.losses), min(other.losses))
    first, second = tokens_to_reach(baseline, target), tokens_to_reach(other, target)
    return first / second if first and second else float("nan")
