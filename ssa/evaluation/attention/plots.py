"""Plots of the attention report, drawn from its tables: ``evaluation/attention/NAME.png`` and ``.svg``.

``entropy``, ``spikiness``: by layer and head; ``dilution``: entropy against the number of visible keys, with log n for
reference; ``norms``: the paper's figure 2.  With temperatures: ``temperature_position``, ``temperature_frequency``,
``temperature_tokens``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ssa.evaluation.attention.measure import Array
from ssa.evaluation.attention.tables import Tables, extremes
from ssa.viz import plot_style
from ssa.viz.temperature_map import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES = ("-", "--", "-.", ":")
_LEGEND_LAYERS = 6  # at most
_LABEL = 14  # characters per token
_BINS = 24  # per logarithmic axis
_SIZES = (
    (1, 1, 2.5, "once"),
    (2, 9, 4.5, "2 to 9 times"),
    (10, np.inf, 7.0, "10 times or more"),
)  # marker size by count
_REFERENCE: dict[str, Any] = {"color": plot_style.GRAY, "linewidth": 2.5, "alpha": 0.6}  # without temperature


def draw(tables: Tables, folder: Path) -> list[Path]:
    """Write every plot for which there is a table.

    Raises:
        OSError: a file cannot be written.
    """
    layers, heads = _shape(tables["heads"])
    map_size = (2 * max(3.4, 0.45 * heads + 1.8), max(3.2, 0.26 * layers + 1.4))
    plots: dict[str, tuple[tuple[float, float], Callable[[Figure, Tables], None]]] = {
        "entropy": (map_size, _entropy),
        "dilution": ((9, 3.6), _dilution),
        "spikiness": (map_size, _spikiness),
    }
    if "norms" in tables:
        plots["norms"] = ((min(14, 9 + 0.02 * layers * heads), 3.8), _norms)
    if scaled := _scaled(tables):
        columns, rows = min(2, len(scaled)), -(-len(scaled) // 2)
        plots["temperature_position"] = ((4.5 * columns, 3.6 * rows), _temperature_position)
        plots["temperature_frequency"] = ((4.5 * columns, 3.6 * rows + 0.3), _temperature_frequency)
        plots["temperature_tokens"] = ((4.5 * columns, 4.2 * rows), _temperature_tokens)
    paths: list[Path] = []
    for name, (size, plot) in plots.items():
        with plot_style.figure(*size) as figure:
            plot(figure, tables)
            paths += plot_style.save(figure, folder / name)
    return paths


def _entropy(figure: Figure, tables: Tables) -> None:
    left, right = figure.subplots(1, 2)
    _map(left, tables["heads"], "entropy", "Attention entropy", "nats")
    _map(right, tables["heads"], "entropy_normalized", "Attention entropy / log n", "1: uniform", 0, 1)


def _spikiness(figure: Figure, tables: Tables) -> None:
    left, right = figure.subplots(1, 2)
    _map(left, tables["heads"], "spikiness", "Spikiness (lower is spikier)", "share of keys attended to", 0, 1)
    _lines(right, tables["positions"], "spikiness")
    right.set(title="Spikiness by number of visible keys", ylabel="mean over heads", ylim=(0, None))


def _dilution(figure: Figure, tables: Tables) -> None:
    left, right = figure.subplots(1, 2)
    positions = tables["positions"]
    n = np.unique(_column(positions, "n"))
    left.plot(n, np.log(n), **_REFERENCE, label="log n (uniform)")
    _lines(left, positions, "entropy")
    left.set(title="Attention dilution", ylabel="entropy (nats)", ylim=(0, None))
    right.axhline(1, **_REFERENCE)
    _lines(right, positions, "entropy_normalized", legend=False)
    right.set(title="Entropy / log n", ylabel="1: uniform", ylim=(0, 1.05))


def _temperature_position(figure: Figure, tables: Tables) -> None:
    for axes, scaled in _panels(figure, tables):
        axes.axhline(1, **_REFERENCE)
        _lines(axes, _only(tables["temperature_positions"], scaled), "mean")
        axes.set(title=f"{scaled.capitalize()} temperature by position", ylabel="mean over heads")


def _temperature_frequency(figure: Figure, tables: Tables) -> None:
    for axes, scaled in _panels(figure, tables):
        table = _only(tables["tokens"], scaled)
        frequency, mean, count = (_column(table, name) for name in ("frequency", "mean", "count"))
        x = frequency + 1
        axes.axhline(1, **_REFERENCE)
        for low, high, size, name in _SIZES:
            chosen = (low <= count) & (count <= high)
            style = {"markersize": size, "markerfacecolor": "none", "markeredgewidth": 0.5, "color": "#7a7a7a"}
            axes.plot(x[chosen], mean[chosen], "o", label=f"token seen {name}", **style)
        axes.plot(*_binned(x, mean, count), color=plot_style.INK, label="mean over occurrences")
        axes.set(title=f"{scaled.capitalize()} temperature by token frequency", ylabel="mean over layers and heads")
        _logarithmic(axes, "occurrences in the training text + 1")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)


def _temperature_tokens(figure: Figure, tables: Tables) -> None:
    chosen = extremes(tables)
    for axes, scaled in _panels(figure, tables):
        ends = [*chosen[scaled]["highest"], *reversed(chosen[scaled]["lowest"])]
        rows = list({row["token"]: row for row in ends}.values())  # a small vocabulary may rank a token in both
        axes.axvline(1, **_REFERENCE)
        axes.plot([row["mean"] for row in rows], range(len(rows)), "o", color=plot_style.INK, markersize=4)
        axes.set_yticks(range(len(rows)), [_label(row["text"]) for row in rows], parse_math=False)
        axes.invert_yaxis()
        axes.set(
            title=f"{scaled.capitalize()} temperature: highest and lowest tokens", xlabel="mean over layers and heads"
        )


def _label(text: str) -> str:
    """A token's text, shortened, with invisible characters shown."""
    visible = shown(text).replace(" ", "·").replace("\n", "")
    return visible if len(visible) <= _LABEL else f"{visible[: _LABEL - 1]}…"


def _norms(figure: Figure, tables: Tables) -> None:
    """Each head's norm and the central 90 % of norm times query temperature; and their distributions over heads."""
    layers, n_heads = _shape(tables["heads"])
    norm = _column(tables["heads"], "norm").reshape(layers, n_heads)
    tau_norm = _column(tables["norms"], "tau_norm").reshape(layers, n_heads, -1)
    width = figure.get_figwidth() - 4.5
    left, right = figure.subplots(1, 2, width_ratios=(width, 4))
    thick = min(1.5, 35 * width / norm.size)  # points: half of the space per head
    x = (np.arange(layers)[:, None] + np.linspace(-0.35, 0.35, n_heads)).ravel()
    style: dict[str, Any] = {"linestyle": "none", "markersize": 2.5 * thick}
    if "query" in _scaled(tables):
        low, middle, high = (tau_norm[..., percentile].ravel() for percentile in (5, 50, 95))
        left.vlines(x, low, high, color=plot_style.INK, linewidth=thick)
        left.plot(x, middle, marker="s", color=plot_style.INK, label="τ‖W‖: median, 5 to 95 %", **style)
        right.ecdf(tau_norm.ravel(), color=plot_style.INK, label="τ‖W‖, over tokens and heads")
    left.plot(x, norm.ravel(), marker="o", markerfacecolor="white", color=plot_style.GRAY, label="‖W‖", **style)
    left.set(title="Query-key norm of each head", xlabel="layer (heads side by side)", ylabel="operator norm")
    left.margins(x=0.01 + 0.1 / layers)
    left.set_ylim(0, 1.2 * max(norm.max(), tau_norm[..., 95].max(), 1e-9))
    left.set_xticks(range(0, layers, max(1, -(-layers // 16))))
    left.legend(loc="upper right", ncols=2)
    right.ecdf(norm.ravel(), color=plot_style.GRAY, linestyle="--", label="‖W‖, over heads")
    right.set(title="Distribution of the norm", xlabel="operator norm", ylabel="cumulative share", ylim=(0, 1.02))
    right.legend(loc="best")


def _map(
    axes: Axes,
    heads: pa.Table,
    column: str,
    title: str,
    label: str,
    low: float | None = None,
    high: float | None = None,
) -> None:
    layers, n_heads = _shape(heads)
    values = _column(heads, column).reshape(layers, n_heads)
    plot_style.heat_map(axes, values, rows=range(layers), columns=range(n_heads), label=label, low=low, high=high)
    axes.set(title=title, xlabel="head", ylabel="layer")


def _lines(axes: Axes, table: pa.Table, column: str, legend: bool = True) -> None:
    """One line per layer: the mean over heads and neighboring n, against n."""
    layer, n, values, count = (_column(table, name) for name in ("layer", "n", column, "count"))
    numbers = np.unique(layer)
    in_legend = set(numbers[np.unique(np.linspace(0, len(numbers) - 1, _LEGEND_LAYERS).round().astype(int))])
    styles = _LINES if len(numbers) <= len(_LINES) else "-"
    for number, color, style in zip(numbers, plot_style.shades(len(numbers)), cycle(styles), strict=False):
        chosen = (layer == number) & np.isfinite(values)
        x, y = _binned(n[chosen], values[chosen], count[chosen])
        axes.plot(x, y, style, color=color, label=f"layer {number}" if number in in_legend else None)
    _logarithmic(axes, "visible keys, n")
    if legend:
        axes.legend(loc="best")


def _logarithmic(axes: Axes, label: str) -> None:
    """Make the x axis logarithmic, with plain numbers."""
    from matplotlib.ticker import LogFormatter

    axes.set(xscale="log", xlabel=label)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(LogFormatter())


def _binned(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted means of the points in each logarithmic bin of x, which starts at 1."""
    bins = np.log(x) * (_BINS / max(np.log(x.max(initial=1)), 1e-9))
    _, groups = np.unique(bins.round(), return_inverse=True)
    total = np.bincount(groups, weights)
    return np.exp(np.bincount(groups, weights * np.log(x)) / total), np.bincount(groups, weights * y) / total


def _panels(figure: Figure, tables: Tables) -> Iterator[tuple[Any, str]]:
    """Axes for each temperature, two per row, and what it scales."""
    names = _scaled(tables)
    for number, scaled in enumerate(names, 1):
        yield figure.add_subplot(-(-len(names) // 2), min(2, len(names)), number), scaled


def _scaled(tables: Tables) -> list[str]:
    return list(dict.fromkeys(tables["temperatures"]["of"].to_pylist())) if "temperatures" in tables else []


def _only(table: pa.Table, scaled: str) -> pa.Table:
    return table.filter(pa.compute.equal(table["of"], scaled))


def _shape(heads: pa.Table) -> tuple[int, int]:
    """Numbers of layers and heads."""
    return int(_column(heads, "layer").max()) + 1, int(_column(heads, "head").max()) + 1


def _column(table: pa.Table, name: str) -> Array:
    values: Array = table[name].to_numpy()
    return values
