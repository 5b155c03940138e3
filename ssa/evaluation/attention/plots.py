"""Plots of the attention report, drawn from its tables: ``evaluation/attention/NAME.png`` and ``.svg``.

``entropy``, ``spikiness``: by layer and head; ``dilution``: entropy against the number of visible keys, with log n for
reference; ``norms``: the paper's figure 2.  With temperatures: ``temperature_position``, ``temperature_frequency``,
``temperature_tokens``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ssa.evaluation.attention.measure import Array
from ssa.evaluation.attention.tables import Tables, extremes
from ssa.viz import plot_style
from ssa.viz.temperature_map import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Frames = dict[str, pd.DataFrame]

_LINES = ("-", "--", "-.", ":")
_LEGEND_LAYERS = 6  # at most
_LABEL = 14  # characters per token
_BINS = 24  # per logarithmic axis
_SIZES = ((1, 1, 2.5, "once"), (2, 9, 4.5, "2 to 9 times"), (10, np.inf, 7.0, "10 times or more"))  # markers by count
_REFERENCE: dict[str, Any] = {"color": plot_style.GRAY, "linewidth": 2.5, "alpha": 0.6}  # without temperature
_MEAN = "mean over layers and heads"


def draw(tables: Tables, folder: Path) -> list[Path]:
    """Write every plot for which there is a table."""
    frames = {name: table.to_pandas() for name, table in tables.items()}
    layers, heads = _shape(frames)
    map_size = (2 * max(3.4, 0.45 * heads + 1.8), max(3.2, 0.26 * layers + 1.4))
    plots: dict[str, tuple[tuple[float, float], Callable[[Figure, Frames], None]]] = {
        "entropy": (map_size, _entropy),
        "dilution": ((9, 3.6), _dilution),
        "spikiness": (map_size, _spikiness),
    }
    if "norms" in frames:
        plots["norms"] = ((min(14, 9 + 0.02 * layers * heads), 3.8), _norms)
    if "temperatures" in frames:
        n_panels = frames["temperatures"]["of"].nunique()
        rows, columns = -(-n_panels // 2), min(2, n_panels)
        plots["temperature_position"] = ((4.5 * columns, 3.6 * rows), _temperature_position)
        plots["temperature_frequency"] = ((4.5 * columns, 3.6 * rows + 0.3), _temperature_frequency)
        ranked_tokens = partial(_temperature_tokens, chosen=extremes(tables))
        plots["temperature_tokens"] = ((4.5 * columns, 4.2 * rows), ranked_tokens)
    paths: list[Path] = []
    for name, (size, plot) in plots.items():
        with plot_style.figure(*size) as figure:
            plot(figure, frames)
            paths += plot_style.save(figure, folder / name)
    return paths


def _entropy(figure: Figure, frames: Frames) -> None:
    left, right = figure.subplots(1, 2)
    _map(left, frames["heads"], "entropy", "Attention entropy", "nats")
    _map(right, frames["heads"], "entropy_normalized", "Attention entropy / log n", "1: uniform", 0, 1)


def _spikiness(figure: Figure, frames: Frames) -> None:
    left, right = figure.subplots(1, 2)
    _map(left, frames["heads"], "spikiness", "Spikiness (lower is spikier)", "share of keys attended to", 0, 1)
    _lines(right, frames["positions"], "spikiness")
    right.set(title="Spikiness by number of visible keys", ylabel="mean over heads", ylim=(0, None))


def _dilution(figure: Figure, frames: Frames) -> None:
    left, right = figure.subplots(1, 2)
    n = np.unique(frames["positions"]["n"])
    left.plot(n, np.log(n), **_REFERENCE, label="log n (uniform)")
    _lines(left, frames["positions"], "entropy")
    left.set(title="Attention dilution", ylabel="entropy (nats)", ylim=(0, None))
    right.axhline(1, **_REFERENCE)
    _lines(right, frames["positions"], "entropy_normalized", legend=False)
    right.set(title="Entropy / log n", ylabel="1: uniform", ylim=(0, 1.05))


def _temperature_position(figure: Figure, frames: Frames) -> None:
    for axes, scaled, positions in _panels(figure, frames["temperature_positions"]):
        axes.axhline(1, **_REFERENCE)
        _lines(axes, positions, "mean")
        axes.set(title=f"{scaled.capitalize()} temperature by position", ylabel="mean over heads")


def _temperature_frequency(figure: Figure, frames: Frames) -> None:
    style = {"markerfacecolor": "none", "markeredgewidth": 0.5, "color": "#7a7a7a"}
    for axes, scaled, tokens in _panels(figure, frames["tokens"]):
        x, mean, count = tokens["frequency"] + 1, tokens["mean"], tokens["count"]
        axes.axhline(1, **_REFERENCE)
        for low, high, size, name in _SIZES:
            chosen = count.between(low, high)
            axes.plot(x[chosen], mean[chosen], "o", label=f"token seen {name}", markersize=size, **style)
        axes.plot(*_binned(x, mean, count), color=plot_style.INK, label="mean over occurrences")
        axes.set(title=f"{scaled.capitalize()} temperature by token frequency", ylabel=_MEAN)
        _logarithmic(axes, "occurrences in the training text + 1")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _temperature_tokens(figure: Figure, frames: Frames, chosen: dict[str, Any]) -> None:
    for axes, scaled, _ in _panels(figure, frames["tokens"]):
        ends = [*chosen[scaled]["highest"], *reversed(chosen[scaled]["lowest"])]
        rows = list({row["token"]: row for row in ends}.values())  # a small vocabulary may rank a token in both
        axes.axvline(1, **_REFERENCE)
        axes.plot([row["mean"] for row in rows], range(len(rows)), "o", color=plot_style.INK, markersize=4)
        axes.set_yticks(range(len(rows)), [_label(row["text"]) for row in rows], parse_math=False)
        axes.invert_yaxis()
        axes.set(title=f"{scaled.capitalize()} temperature: highest and lowest tokens", xlabel=_MEAN)


def _label(text: str) -> str:
    """A token's text, shortened, with invisible characters shown."""
    visible = shown(text).replace(" ", "·").replace("\n", "")
    return visible if len(visible) <= _LABEL else f"{visible[: _LABEL - 1]}…"


def _norms(figure: Figure, frames: Frames) -> None:
    """Each head's norm and the central 90 % of norm times query temperature; and their distributions over heads."""
    layers, n_heads = _shape(frames)
    norm, tau_norm = frames["heads"]["norm"], frames["norms"]["tau_norm"]
    percentiles = frames["norms"].pivot(index=["layer", "head"], columns="percentile", values="tau_norm")
    width = figure.get_figwidth() - 4.5
    left, right = figure.subplots(1, 2, width_ratios=(width, 4))
    thick = min(1.5, 35 * width / norm.size)  # points: half of the space per head
    x = (np.arange(layers)[:, None] + np.linspace(-0.35, 0.35, n_heads)).ravel()
    style: dict[str, Any] = {"linestyle": "none", "markersize": 2.5 * thick}
    if "temperatures" in frames and "query" in set(frames["temperatures"]["of"]):
        left.vlines(x, percentiles[5], percentiles[95], color=plot_style.INK, linewidth=thick)
        left.plot(x, percentiles[50], marker="s", color=plot_style.INK, label="τ‖W‖: median, 5 to 95%", **style)
        right.ecdf(tau_norm, color=plot_style.INK, label="τ‖W‖, over tokens and heads")
    left.plot(x, norm, marker="o", markerfacecolor="white", color=plot_style.GRAY, label="‖W‖", **style)
    left.set(title="Query-key norm of each head", xlabel="layer (heads side by side)", ylabel="operator norm")
    left.margins(x=0.01 + 0.1 / layers)
    left.set_ylim(0, 1.2 * max(norm.max(), percentiles[95].max(), 1e-9))
    left.set_xticks(range(0, layers, max(1, -(-layers // 16))))
    left.legend(loc="upper right", ncols=2)
    right.ecdf(norm, color=plot_style.GRAY, linestyle="--", label="‖W‖, over heads")
    right.set(title="Distribution of the norm", xlabel="operator norm", ylabel="cumulative share", ylim=(0, 1.02))
    right.legend(loc="best")


def _map(axes: Axes, heads: pd.DataFrame, column: str, title: str, label: str, *limits: float) -> None:
    values = heads.pivot(index="layer", columns="head", values=column)
    low, high = limits or (None, None)
    plot_style.heat_map(axes, values, rows=values.index, columns=values.columns, label=label, low=low, high=high)
    axes.set(title=title, xlabel="head", ylabel="layer")


def _lines(axes: Axes, table: pd.DataFrame, column: str, legend: bool = True) -> None:
    """One line per layer: the mean over heads and neighboring n, against n."""
    layers = np.unique(table["layer"])
    in_legend = set(layers[np.unique(np.linspace(0, len(layers) - 1, _LEGEND_LAYERS).round().astype(int))])
    styles = _LINES if len(layers) <= len(_LINES) else "-"
    for layer, color, style in zip(layers, plot_style.shades(len(layers)), cycle(styles), strict=False):
        rows = table[(table["layer"] == layer) & np.isfinite(table[column])]
        x, y = _binned(rows["n"], rows[column], rows["count"])
        axes.plot(x, y, style, color=color, label=f"layer {layer}" if layer in in_legend else None)
    _logarithmic(axes, "visible keys, n")
    if legend:
        axes.legend(loc="best")


def _logarithmic(axes: Axes, label: str) -> None:
    """Make the x axis logarithmic, with plain numbers."""
    from matplotlib.ticker import LogFormatter

    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(LogFormatter())


def _binned(x: pd.Series, y: pd.Series, weights: pd.Series) -> tuple[Array, Array]:
    """Weighted means of the points in each logarithmic bin of x, which starts at 1."""
    bins = np.log(x) * (_BINS / max(np.log(x.max()), 1e-9))
    _, groups = np.unique(bins.round(), return_inverse=True)
    total = np.bincount(groups, weights)
    return np.exp(np.bincount(groups, weights * np.log(x)) / total), np.bincount(groups, weights * y) / total


def _panels(figure: Figure, table: pd.DataFrame) -> Iterator[tuple[Any, str, pd.DataFrame]]:
    """For each temperature: axes, two per row; what it scales; and its rows of the table."""
    panels = table.groupby("of", sort=False)
    for number, (scaled, rows) in enumerate(panels, 1):
        yield figure.add_subplot(-(-len(panels) // 2), min(2, len(panels)), number), scaled, rows


def _shape(frames: Frames) -> tuple[int, int]:
    """Numbers of layers and heads."""
    return frames["heads"]["layer"].nunique(), frames["heads"]["head"].nunique()
