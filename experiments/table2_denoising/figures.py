"""The figure of table 2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from experiments.engine.context import ExperimentContext
from experiments.engine.drawing import band
from experiments.table2_denoising.cells import LEARNED, UNIFORM, DenoisingCell, DenoisingResults, DenoisingSettings
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {  # label, color, marker and its size, line; markers that overlap differ in size
    "vanilla": ("vanilla, learned map", style_of("none").color, "s", 7, "-"),
    "value-selective": ("value-selective, learned map", style_of("ssa").color, "o", 4, "-"),
    "uniform vanilla": ("vanilla, uniform map", style_of("none").color, "D", 4.5, "--"),
    "uniform value-selective": ("value-selective, uniform map", style_of("ssa").color, "^", 4.5, "--"),
}


def draw(context: ExperimentContext, settings: DenoisingSettings, found: DenoisingResults) -> None:
    """Risk and excess over Bayes against the noise rate and the length."""
    caption = (
        f"Top: mean squared error per dimension on {settings.contexts} test contexts per seed; naive averaging and "
        "Bayes: lines closed-form, dots Monte Carlo. Bottom: excess over the Bayes estimator on the same contexts; "
        "dotted: closed-form limit of the method, where above 0. Bands: 95% interval of the mean over "
        f"{settings.named_seeds}. Left: L = {settings.length}. Right: noise rate {settings.noise_rate:g}. "
        f"m = {settings.dimension}, sigma = {settings.sigma:g}."
    )
    sweeps = (
        ("noise rate", 0, [cell for cell in found.cells if cell[1:] == found.default[1:]]),
        ("context length $L$ (tokens)", 1, [cell for cell in found.cells if cell[::2] == found.default[::2]]),
    )
    with context.figure("figure", plot_style.PAGE, 4.6, caption) as drawing:
        panels = drawing.subplots(2, 2, sharex="col", sharey="row")
        for (upper, lower), (name, place, swept) in zip(panels.T, sweeps, strict=True):
            cells = sorted(swept)
            places = [float(cell[place]) for cell in cells]
            _risks(upper, found, cells, places)
            _excess(lower, found, cells, places)
            if place == 1:
                lower.set_xscale("log", base=2)
            lower.set_xticks(places, [f"{value:g}" for value in places])
            lower.minorticks_off()
            lower.set_xlabel(name)
        panels[0, 0].set_ylabel("MSE per dimension")
        panels[1, 0].set_ylabel("excess over Bayes (%)")
        drawing.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _risks(axes: Axes, found: DenoisingResults, cells: list[DenoisingCell], places: list[float]) -> None:
    for name, label, line, color in (
        ("naive", "naive averaging", "-.", plot_style.GRAY),
        ("Bayes", "Bayes-optimal", ":", plot_style.INK),
    ):
        values = [found.fixed[cell.noise_rate, cell.length][name] for cell in cells]
        axes.plot(places, [one["closed"] for one in values], line, color=color, label=label, zorder=3)
        axes.plot(places, [one["mean"] for one in values], ".", color=color, markersize=5, zorder=3)
    for method in (*LEARNED, *UNIFORM):
        _band(axes, places, [found.values(cell, method) for cell in cells], method)
    _logarithmic(axes, (1, 2, 5))


def _excess(axes: Axes, found: DenoisingResults, cells: list[DenoisingCell], places: list[float]) -> None:
    for method in (*LEARNED, *UNIFORM):
        measured, limits = [], []
        for cell in cells:
            optimal = found.optimal(cell)
            measured.append([100 * value / optimal["mean"] for value in found.values(cell, method, "excess")])
            limit = 100 * (found.learned[cell, method]["limit"] / optimal["closed"] - 1)
            limits.append(limit if limit > 1e-6 else math.nan)
        _band(axes, places, measured, method)
        axes.plot(places, limits, ":", color=STYLES[method][1], linewidth=1)
    _logarithmic(axes, (1,))


def _band(axes: Axes, places: list[float], values: list[list[float]], method: str) -> None:
    label, color, marker, size, line = STYLES[method]
    look = {"color": color, "label": label, "linestyle": line, "marker": marker, "markersize": size}
    band(axes, places, values, alpha=0.3, markerfacecolor="none", **look)


def _logarithmic(axes: Axes, digits: tuple[int, ...]) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
