"""Select the setting with the lowest mean loss over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

K = TypeVar("K")


def best_setting(losses: Mapping[K, Sequence[float]]) -> K:
    """The setting, such as a learning rate, with the lowest mean loss; a run that diverged counts as infinite."""

    def total(setting: K) -> float:
        return math.fsum(loss if math.isfinite(loss) else math.inf for loss in losses[setting])

    return min(losses, key=total)
