"""The figure of a grid: differences of its rows to the first, by group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.engine.context import ExperimentContext
from experiments.engine.drawing import points
from experiments.engine.grid import Grid, Metric
from ssa.statistics import mean_interval
from ssa.viz import plot_style
from ssa.viz.rule_style import RuleStyle, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Differences = Mapping[str, Mapping[str, Sequence[float]]]  # by group and row, one for each pair of seeds
_SHORT = 16  # characters of row names beside which there is room for two panels
_UNEQUAL = 8  # ratio of the panels' reaches above which their common axis is logarithmic away from 0


def draw_differences(
    context: ExperimentContext,
    grid: Grid,
    metric: Metric,
    differences: Differences,
    variants: Mapping[str, str],
    seeds: str,
) -> None:
    """One panel for each group with runs, on common axes: a circle per seed, and the mean with its 95% interval.

    ``variants``: by row, for its look.
    """
    base, rows = grid.rows[0].name, grid.rows[1:]
    differences = {group: found for group, found in differences.items() if any(found.values())} or differences
    caption = (
        f"Difference in {metric.name} to {base} at equal seed. Circles: seeds. Filled marks: means with 95% intervals "
        f"(Student's t, {seeds}). Left of the line: lower."
    )
    columns = 2 if len(differences) > 1 and max(len(row.name) for row in rows) <= _SHORT else 1
    lines = math.ceil(len(differences) / columns)
    height = 0.65 + (0.35 + 0.19 * len(rows)) * lines
    with context.figure("differences", plot_style.COLUMN, height, caption) as figure:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes, (group, by_row) in zip(panels.flat, differences.items(), strict=False):
            axes.set_title(group)
            axes.axvline(0, color=plot_style.GRAY, linewidth=0.8)
            for place, row in enumerate(rows):
                _row(axes, place, by_row[row.name], style_of(variants.get(row.name, "")))
        for axes in panels.flat[len(differences) :]:
            axes.set_visible(False)
        _scale(panels[0, 0], differences)
        panels[0, 0].set_yticks(range(len(rows)), [row.name for row in rows])
        panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
        unit = "\n(nats per token)" if metric.key.endswith("loss") else ""
        figure.supxlabel(f"difference in {metric.name}{unit}", fontsize="medium")


def _row(axes: Axes, place: int, differences: Sequence[float], style: RuleStyle) -> None:
    if differences:
        below = [place + 0.28] * len(differences)
        axes.plot(differences, below, "o", color=style.color, markersize=2.5, markeredgewidth=0.7, fillstyle="none")
        look = {"color": style.color, "marker": style.marker, "elinewidth": 1.4}
        points(axes, [place], [mean_interval(differences)], horizontal=True, **look)


def _scale(axes: Axes, differences: Differences) -> None:
    """The common axis: linear, or linear near 0 and logarithmic beyond where one group differs by far more."""
    from matplotlib.ticker import MaxNLocator

    by_group = ([abs(value) for values in by_row.values() for value in values] for by_row in differences.values())
    reaches = [max(values) for values in by_group if values]
    near = min((reach for reach in reaches if reach > 0), default=0.0)
    if near and max(reaches) > _UNEQUAL * near:
        first, last = (math.floor(math.log10(reach)) for reach in (near, max(reaches)))
        first = max(first, last - 4)
        near, far = 10.0**first, 10.0**last
        axes.set_xscale("symlog", linthresh=near)
        axes.set_xticks([-far, 0, far], [f"{-far:g}", "0", f"{far:g}"])
        ticks = [digit * 10.0**power for power in range(first, last) for digit in range(1, 10)]
        axes.set_xticks([sign * tick for sign in (-1, 1) for tick in ticks], minor=True)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))
