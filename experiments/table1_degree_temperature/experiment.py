"""Table 1: the temperatures that SSA learns for the nodes of a token graph, by number of neighbors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext, TableRow
from experiments.engine.drawing import points
from experiments.fig3_token_graph.cells import DEGREES, TokenGraphCell, TokenGraphSettings, compute
from ssa.statistics import mean_interval, shown
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

Runs = list[dict[str, Any]]  # one per seed


def run(settings: TokenGraphSettings, context: ExperimentContext) -> None:
    """Analyzes the temperatures of the runs of figure 3's default cell."""
    cell = TokenGraphCell("default", {}, settings.learning_rates, settings.seeds, ["ssa", "vanilla"])
    compute(settings, context, [cell])
    best = {method: cell.best(method) for method in cell.methods}
    found = {lr: cell.runs("ssa", lr) for lr in cell.rates}
    runs, vanilla = found[best["ssa"]], cell.runs("vanilla", best["vanilla"])
    paper = {row["quantity"]: row["value"] for row in context.experiment.references()}
    context.table("runs", _runs(found, DEGREES[settings.spread]))
    context.table("nodes", _nodes(runs))
    context.summary(
        "Temperature of a node by its number of out-neighbors, SSA.",
        _summary(settings, found, vanilla, best["ssa"], paper),
        f"Mean over the nodes of a degree, then mean [95% interval] over {settings.named_seeds}, at SSA's best "
        f"learning rate {best['ssa']:g} by cross-entropy. Logits' spread: standard deviation over the vocabulary, "
        f"before and after the temperature, and vanilla's at its best learning rate {best['vanilla']:g}. Last "
        "columns: the temperature at the other learning rates. eta squared: share of the variance of the temperature "
        "over nodes that the degree explains. -: undefined because all temperatures of a run are equal.",
    )
    _draw(settings, context, runs, best["ssa"])
    context.conclude(*_conclusions([association(run["temperature"], run["degree"]) for run in runs]))


def association(temperature: Sequence[float], degree: Sequence[int]) -> tuple[float, float]:
    """Association of temperature and degree over nodes.

    Returns:
        Eta squared, the share of the variance of the temperature that lies between degrees, and Spearman's correlation;
        both nan if temperatures (to a billionth) or degrees are all equal.
    """
    from scipy.stats import spearmanr

    tau, degrees = np.asarray(temperature, float), np.asarray(degree)
    if np.ptp(tau) < 1e-9 * abs(tau.mean()) or np.ptp(degrees) == 0:
        return math.nan, math.nan
    between = np.array([tau[degrees == one].mean() for one in degree])
    return float(between.var() / tau.var()), float(spearmanr(tau, degrees).statistic)


def of_degree(run: Mapping[str, Any], quantity: str, degree: int) -> list[float]:
    return [value for value, one in zip(run[quantity], run["degree"], strict=True) if one == degree]


def _means(runs: Runs, quantity: str, degree: int) -> list[float]:
    """Mean over the nodes of a degree, for each seed."""
    return [fmean(of_degree(run, quantity, degree)) for run in runs]


def _runs(by_rate: Mapping[float, Runs], degrees: list[int]) -> Iterator[TableRow]:
    for lr, runs in by_rate.items():
        for run in runs:
            eta, rho = association(run["temperature"], run["degree"])
            row = {"lr": lr, "seed": run["seed"], "excess": run["excess"], "eta_squared": eta, "spearman": rho}
            for degree in degrees:
                values = of_degree(run, "temperature", degree)
                row |= {f"tau_{degree}": fmean(values), f"sd_{degree}": stdev(values) if len(values) > 1 else math.nan}
            yield row


def _nodes(runs: Runs) -> Iterator[TableRow]:
    columns = ("degree", "temperature", "spread")
    for run in runs:
        for node, values in enumerate(zip(*(run[name] for name in columns), strict=True)):
            yield {"seed": run["seed"], "node": node, **dict(zip(columns, values, strict=True))}


def _summary(
    settings: TokenGraphSettings, by_rate: Mapping[float, Runs], vanilla: Runs, best: float, paper: Mapping[str, str]
) -> Iterator[TableRow]:
    runs, others = by_rate[best], [lr for lr in by_rate if lr != best]
    before = [{**run, "spread": np.divide(run["spread"], run["temperature"]).tolist()} for run in runs]
    for degree in DEGREES[settings.spread]:
        inside = [of_degree(run, "temperature", degree) for run in runs]
        yield {
            "out-neighbors": degree,
            "paper": paper.get(f"temperature, {degree} neighbors", "-"),
            "temperature": shown(mean_interval(_means(runs, "temperature", degree)), 2),
            "sd within degree": f"{fmean(stdev(values) for values in inside):.2f}" if len(inside[0]) > 1 else "-",
            "logits' spread before": shown(mean_interval(_means(before, "spread", degree)), 1),
            "after": shown(mean_interval(_means(runs, "spread", degree)), 1),
            "vanilla's": shown(mean_interval(_means(vanilla, "spread", degree)), 1),
            **{f"at lr {lr:g}": f"{fmean(_means(by_rate[lr], 'temperature', degree)):.2f}" for lr in others},
        }
    for place, name in enumerate(("eta squared", "Spearman's correlation")):
        means = {
            lr: mean_interval([association(run["temperature"], run["degree"])[place] for run in runs])
            for lr, runs in by_rate.items()
        }
        yield {
            "out-neighbors": name,
            "paper": "-",
            "temperature": shown(means[best], 2),
            **dict.fromkeys(("sd within degree", "logits' spread before", "after", "vanilla's"), ""),
            **{f"at lr {lr:g}": f"{means[lr].mean:.2f}".replace("nan", "-") for lr in others},
        }


def _draw(settings: TokenGraphSettings, context: ExperimentContext, runs: Runs, lr: float) -> None:
    degrees = DEGREES[settings.spread]
    caption = (
        f"Temperature of each node (points, jittered sideways), {settings.vocabulary} nodes, {settings.named_seeds}; "
        f"mean over nodes with its 95% interval over seeds. SSA at its best learning rate, {lr:g}."
    )
    with context.figure("figure", plot_style.COLUMN, 2.5, caption) as drawing:
        axes, jitter = drawing.add_subplot(), np.random.default_rng(0)
        for place, degree in enumerate(degrees):
            values = np.concatenate([of_degree(run, "temperature", degree) for run in runs])
            places = place + jitter.uniform(-0.3, 0.3, len(values))
            many = len(values) > 1000  # as pixels, else the SVG has megabytes
            axes.plot(places, values, ".", color=plot_style.GRAY, markersize=2.5, alpha=0.5, zorder=1, rasterized=many)
        means = [mean_interval(_means(runs, "temperature", degree)) for degree in degrees]
        points(axes, range(len(degrees)), means, color=style_of("ssa").color, marker="o", linestyle="-", capsize=4)
        axes.axhline(1, color=plot_style.GRAY, linewidth=0.8)  # as without a temperature
        axes.set_xticks(range(len(degrees)), [str(degree) for degree in degrees])
        axes.grid(False, axis="x")
        axes.set(xlabel="out-neighbors of the node", ylabel=r"temperature $\tau$")


def _conclusions(measured: list[tuple[float, float]]) -> Iterator[Conclusion]:
    eta, rho = (mean_interval(values) for values in zip(*measured, strict=True))
    explained = "the number of neighbors explains more than half of the variance of the temperature over nodes"
    yield Conclusion(explained, "share of the variance over nodes explained by degree", eta, "higher", 0.5)
    larger = "nodes with fewer neighbors get larger temperatures"
    yield Conclusion(larger, "Spearman's correlation of temperature and degree over nodes", rho, "lower")
