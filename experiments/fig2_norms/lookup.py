"""Figure 2, right: norms and spikiness of a layer trained to look up items and groups of items."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext, TableRow
from experiments.engine.job_cache import CachedJob
from experiments.engine.tuning import best_setting
from experiments.fig2_norms.panel import LABELS, NormSettings, Panel, run_row, short, smaller, summary_row
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

METHODS = ("vanilla", "ssa")
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)


class LookupCell(NamedTuple):
    """A method in a setup at a learning rate."""

    shape: str
    levels: str
    lr: float
    method: str


Found = dict[LookupCell, list[dict[str, Any]]]  # one result per seed


def panel(settings: NormSettings, context: ExperimentContext) -> Panel:
    """Trains all cells; draws the distributions over tokens of the main setup."""
    found: Found = context.compute({cell: _cached_job(settings, cell) for cell in _cells(settings)})
    context.table("lookup_levels", list(_level_rows(found)))
    context.table("lookup_tokens", list(_token_rows(settings, found)))
    _draw(settings, context, found)
    runs = []
    for cell, seeds in found.items():
        width, heads = map(int, cell.shape.split("x"))
        setup = {"panel": "lookup", "target": f"levels {cell.levels}", "width": width, "heads": heads, "lr": cell.lr}
        runs += [run_row({**run, "error": run["mse"]}, **setup, method=LABELS[cell.method]) for run in seeds]
    return Panel(runs, list(_summary(settings, found)), list(_conclusions(settings, found)))


def _setups(settings: NormSettings) -> list[tuple[str, str]]:
    """Shapes and levels, the main setup first."""
    shape, *shapes = settings.shapes
    levels = settings.query_levels
    return [*((shape, each) for each in levels), *((each, levels[0]) for each in shapes)]


def _cells(settings: NormSettings) -> Iterator[LookupCell]:
    for (shape, levels), lr, method in itertools.product(_setups(settings), settings.lookup_lrs, METHODS):
        yield LookupCell(shape, levels, lr, method)


def _cached_job(settings: NormSettings, cell: LookupCell) -> CachedJob:
    from ssa.theory.mixed_lookup import train_lookup

    width, heads = map(int, cell.shape.split("x"))
    same = settings.model_dump(include={"items", "value_dim", "batch", "seeds", "first_seed", "vectorized"})
    shape = {"width": width, "heads": heads, "levels": levels_of(cell.levels)}
    return train_lookup, {**same, **shape, "method": cell.method, "lr": cell.lr, "steps": settings.lookup_steps}


def levels_of(text: str) -> list[int]:
    """``"1-3"`` gives ``[1, 2, 3]``."""
    low, high = map(int, text.split("-"))
    return list(range(low, high + 1))


def best_rate(found: Found, shape: str, levels: str, method: str) -> float:
    """A method's best learning rate."""
    same = [cell for cell in found if cell._replace(lr=0) == LookupCell(shape, levels, 0, method)]
    return best_setting({cell.lr: [run["mse"] for run in found[cell]] for cell in same})


def at_vanillas_rate(found: Found, shape: str, levels: str) -> tuple[float, dict[str, list[dict[str, Any]]]]:
    """Vanilla's best learning rate, and each method's runs at it."""
    lr = best_rate(found, shape, levels, "vanilla")
    return lr, {method: found[LookupCell(shape, levels, lr, method)] for method in METHODS}


def _level_rows(found: Found) -> Iterator[TableRow]:
    for cell, seeds in found.items():
        for run in seeds:
            for place, level in enumerate(levels_of(cell.levels)):
                row = {**cell._asdict(), "method": LABELS[cell.method], "seed": run["seed"], "level": level}
                row["mse"] = short(run["by_level"]["mse"][place])
                for name in ("tau", "spikiness"):
                    row[name] = " ".join(f"{value:.4g}" for value in run["by_level"][name][place])
                yield row


def _token_rows(settings: NormSettings, found: Found) -> Iterator[TableRow]:
    """Percentiles over tokens, heads and seeds."""
    for shape, levels in _setups(settings):
        lr, runs = at_vanillas_rate(found, shape, levels)
        for method in METHODS:
            for name in ("norm", "spikiness"):
                values = [run["tokens"][name] for run in runs[method]]
                marks = np.percentile(np.asarray(values, float), PERCENTILES)
                row = {"shape": shape, "levels": levels, "lr": lr, "method": LABELS[method], "quantity": name}
                row |= {"mean": float(np.mean(values))}
                yield row | {f"p{p}": float(mark) for p, mark in zip(PERCENTILES, marks, strict=True)}


def _summary(settings: NormSettings, found: Found) -> Iterator[TableRow]:
    for shape, levels in _setups(settings):
        lr, runs = at_vanillas_rate(found, shape, levels)
        setup = f"{shape}, levels {levels}, lr {lr:g} (vanilla's best)"
        names = {"mse": "mean squared error", "norm_mean": "norm", "spikiness": "spikiness"}
        if (shape, levels) == _setups(settings)[0]:
            names |= {"norm_max": "norm, largest of tokens and heads", "norm": "norm of W alone"}
            names |= {"norm_geometric": "norm at geometric mean of tau 1"}
        for name, quantity in names.items():
            yield summary_row("lookup", setup, quantity, {method: _of(runs[method], name) for method in METHODS})
    shape, levels = _setups(settings)[0]
    pairs = {f"lr {lr:g}": dict.fromkeys(METHODS, lr) for lr in settings.lookup_lrs}
    own = {method: best_rate(found, shape, levels, method) for method in METHODS}
    pairs["each at its own best lr: " + ", ".join(f"{lr:g}" for lr in own.values())] = own
    for label, rates in pairs.items():
        for name, quantity in {"mse": "mean squared error", "norm_mean": "norm"}.items():
            values = {method: _of(found[LookupCell(shape, levels, lr, method)], name) for method, lr in rates.items()}
            yield summary_row("lookup", f"{shape}, levels {levels}, {label}", quantity, values)


def _of(runs: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [run[name] for run in runs]


def _conclusions(settings: NormSettings, found: Found) -> Iterator[Conclusion]:
    levels, (main, *others) = settings.query_levels[0], settings.shapes
    claims = {
        "norm_mean": ("SSA has a smaller mean query-key norm", "mean over tokens and heads of the norm of tau_i W"),
        "mse": ("SSA's task error is lower", "mean squared error"),
        "spikiness": ("SSA's maps are spikier", "mean spikiness, the share of keys attended to"),
    }
    for shape, names in ((main, list(claims)), *((shape, ["norm_mean", "mse"]) for shape in others)):
        lr, runs = at_vanillas_rate(found, shape, levels)
        for name in names:
            claim, quantity = claims[name]
            where = f"trained on the mixed lookup, {shape}, at vanilla's best learning rate, {lr:g}"
            yield smaller(f"{where}, {claim}", quantity, *(_of(runs[method], name) for method in ("ssa", "vanilla")))


def _draw(settings: NormSettings, context: ExperimentContext, found: Found) -> None:
    shape, levels = _setups(settings)[0]
    lr, runs = at_vanillas_rate(found, shape, levels)
    caption = (
        f"Mixed lookup, {shape.replace('x', ' dimensions, ')} heads, queries of levels {levels} (2^level of "
        f"{settings.items} items), learning rate {lr:g}: share of tokens below a value; tokens, heads and "
        f"{settings.named_seeds} pooled. Left: operator norm of tau_i W (tau = 1 without a temperature). Right: "
        "spikiness of the heads' maps, lower is spikier; ideal: of the maps asked for. Vertical lines: means."
    )
    lines: list[dict[str, Any]] = [{"linestyle": ":", "linewidth": 1.8}, {"linestyle": "-"}]
    with context.figure("figure", plot_style.PAGE, 2.6, caption) as figure:
        labels = {"norm": r"$\|\tau_i W\|$", "spikiness": "spikiness: share of keys attended to"}
        for axes, (name, label) in zip(figure.subplots(1, 2, sharey=True), labels.items(), strict=True):
            for method, line in zip(METHODS, lines, strict=True):
                color = style_of("none" if method == "vanilla" else method).color
                values = np.sort(np.concatenate([np.ravel(run["tokens"][name]) for run in runs[method]]))
                axes.ecdf(values, label=LABELS[method], color=color, **line)
                axes.axvline(values.mean(), color=color, linewidth=0.8, linestyle=line["linestyle"])
            axes.set(xscale="log", xlabel=label)
            axes.xaxis.set_minor_formatter("")
        ideal = [2**level / settings.items for level in levels_of(levels)]
        figure.axes[1].ecdf(ideal, label="ideal", color=plot_style.GRAY, linestyle="-.", linewidth=1)
        figure.axes[0].set_ylabel("share of tokens")
        for axes in figure.axes:
            axes.legend(loc="upper left")
