"""How many tokens a loss takes: comparing the pace of two training runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Validations of one run: tokens seen so far, ascending, and the loss at each, nats a token."""

    tokens: Sequence[float]
    losses: Sequence[float]


def tokens_to_reach(curve: Curve, loss: float) -> float:
    """Tokens after which the curve, straight between validations, is first at or below a loss; nan if it never is.

    Where it is so at the first validation, the tokens of that one.
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
    """Tokens that the baseline needs over tokens that the other needs, for the lowest loss that both reach.

    Above 1 the other is faster.  No run is left out: of the two lowest losses the higher one is the goal, so that each
    curve reaches it.  nan where that takes no training at all: one of them never improves on its start.
    """
    goal = max(min(baseline.losses), min(other.losses))
    first, second = tokens_to_reach(baseline, goal), tokens_to_reach(other, goal)
    return first / second if first and second else float("nan")
