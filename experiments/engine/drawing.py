"""Means with their confidence intervals, drawn as points or as a line with a band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssa.statistics import Estimate, mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def points(
    axes: Axes, places: Sequence[float], estimates: Sequence[Estimate], *, horizontal: bool = False, **look: Any
) -> None:
    """Means with error bars along y, or along x if horizontal; ``look``: arguments of ``Axes.errorbar``."""
    means, bars = [estimate.mean for estimate in estimates], error_bars(estimates)
    data: dict[str, Any] = (
        {"x": means, "y": places, "xerr": bars} if horizontal else {"x": places, "y": means, "yerr": bars}
    )
    axes.errorbar(**{"linestyle": "none", "markersize": 4, "elinewidth": 1, **data, **look})


def error_bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths below and above each mean; 0 where there is no interval."""
    below = [estimate.mean - estimate.low for estimate in estimates]
    above = [estimate.high - estimate.mean for estimate in estimates]
    return [[max(0.0, length) if math.isfinite(length) else 0.0 for length in side] for side in (below, above)]


def band(axes: Axes, places: Sequence[float], values: Sequence[Sequence[float]], alpha: float, **look: Any) -> None:
    """A line through the means over seeds, with a band for the interval; ``look``: arguments of ``Axes.plot``."""
    estimates = [mean_interval(seeds) for seeds in values]
    axes.plot(places, [estimate.mean for estimate in estimates], **look)
    low, high = [estimate.low for estimate in estimates], [estimate.high for estimate in estimates]
    axes.fill_between(places, low, high, color=look["color"], alpha=alpha, linewidth=0)
