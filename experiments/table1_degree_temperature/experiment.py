"""Table 1: the temperatures that SSA gives to the nodes of a token graph, by their number of neighbors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.engine.conclusion import Conclusion, shown
from experiments.engine.tuning import best_setting
from experiments.fig3_token_graph.cells import DEGREES, TokenGraphSettings, cached_job
from ssa.viz import plot_style

if TYPE_CHECKING:
    from experiments.engine.context import ExperimentContext, TableRow

Runs = Mapping[float, list[dict[str, Any]]]  # by learning rate, one a seed


def run(settings: TokenGraphSettings, context: ExperimentContext) -> None:
    """Reads the temperatures off the runs of figure 3."""
    keys = [(method, lr) for method in ("ssa", "vanilla") for lr in settings.learning_rates]
    values = context.compute([cached_job(settings, method, lr, settings.seeds) for method, lr in keys])
    found: dict[str, dict[float, list[dict[str, Any]]]] = {"ssa": {}, "vanilla": {}}
    for (method, lr), value in zip(keys, values, strict=True):
        found[method][lr] = value["runs"]
    best = {
        method: best_setting({lr: [run["excess"] for run in runs] for lr, runs in by_rate.items()})
        for method, by_rate in found.items()
    }
    context.table("runs", list(_runs(found["ssa"], DEGREES[settings.spread])))
    context.table("nodes", list(_nodes(found["ssa"][best["ssa"]])))
    context.summary(
        "Temperature of a node by its number of out-neighbors, SSA.",
        list(_summary(settings, found["ssa"], found["vanilla"][best["vanilla"]], best["ssa"])),
        f"Mean over the nodes of a degree, then mean [95 % interval] over {settings.seeds} seeds, at SSA's best "
        f"learning rate {best['ssa']:g} by cross-entropy. Logits' spread: standard deviation over the vocabulary, "
        f"before the temperature and after it, and vanilla's at its best learning rate {best['vanilla']:g}. Last "
        "columns: the temperature at the other learning rates. eta squared: share of the variance of the temperature "
        "over nodes that the degree explains. -: undefined because all temperatures of a run "
        "are equal.",
    )
    _draw(settings, context, found["ssa"][best["ssa"]], best["ssa"])
    measured = [association(run["temperature"], run["degree"]) for run in found["ssa"][best["ssa"]]]
    for conclusion in _conclusions(measured):
        context.conclude(conclusion)


def association(temperature: Sequence[float], degree: Sequence[int]) -> tuple[float, float]:
    """How temperature and degree of nodes go together.

    Returns:
        Eta squared, the share of the variance of the temperature that lies between degrees, and Spearman's correlation;
        both nan where either is the same for all nodes (to a billionth).
    """
    import numpy as np
    from scipy.stats import spearmanr

    tau, degrees = np.asarray(temperature, float), np.asarray(degree)
    if np.ptp(tau) < 1e-9 * abs(tau.mean()) or np.ptp(degrees) == 0:
        return math.nan, math.nan
    between = np.array([tau[degrees == one].mean() for one in degree])
    return float(between.var() / tau.var()), float(spearmanr(tau, degrees).statistic)


def of_degree(run: Mapping[str, Any], quantity: str, degree: int) -> list[float]:
    """The values of the nodes of a degree."""
    return [value for value, one in zip(run[quantity], run["degree"], strict=True) if one == degree]


def _runs(by_rate: Runs, degrees: list[int]) -> Iterator[TableRow]:
    from statistics import fmean, stdev

    for lr, runs in by_rate.items():
        for seed, one in enumerate(runs):
            eta, rho = association(one["temperature"], one["degree"])
            row = {"lr": lr, "seed": seed, "excess": one["excess"], "eta_squared": eta, "spearman": rho}
            for degree in degrees:
                values = of_degree(one, "temperature", degree)
                row |= {f"tau_{degree}": fmean(values), f"sd_{degree}": stdev(values) if len(values) > 1 else math.nan}
            yield row


def _nodes(runs: list[dict[str, Any]]) -> Iterator[TableRow]:
    for seed, one in enumerate(runs):
        for node, values in enumerate(zip(one["degree"], one["temperature"], one["spread"], strict=True)):
            yield {"seed": seed, "node": node} | dict(zip(("degree", "temperature", "spread"), values, strict=True))


def _summary(
    settings: TokenGraphSettings, by_rate: Runs, vanilla: list[dict[str, Any]], best: float
) -> Iterator[TableRow]:
    from statistics import fmean, stdev

    from experiments.engine.context import references
    from ssa.statistics import mean_interval

    paper = {row["quantity"]: row["value"] for row in references("table1_degree_temperature")}
    others = [lr for lr in by_rate if lr != best]
    for degree in DEGREES[settings.spread]:
        tau = {lr: [fmean(of_degree(one, "temperature", degree)) for one in runs] for lr, runs in by_rate.items()}
        inside = [of_degree(one, "temperature", degree) for one in by_rate[best]]
        before = [
            fmean(spread / tau for spread, tau in zip(*(of_degree(one, key, degree) for key in _SPREAD), strict=True))
            for one in by_rate[best]
        ]
        after, other = ([fmean(of_degree(one, "spread", degree)) for one in runs] for runs in (by_rate[best], vanilla))
        yield {
            "out-neighbors": degree,
            "paper": paper.get(f"temperature, {degree} neighbors", "-"),
            "temperature": shown(mean_interval(tau[best]), 2),
            "sd inside": f"{fmean(stdev(values) for values in inside):.2f}" if len(inside[0]) > 1 else "-",
            "logits' spread before": shown(mean_interval(before), 1),
            "after": shown(mean_interval(after), 1),
            "vanilla's": shown(mean_interval(other), 1),
            **{f"at lr {lr:g}": f"{fmean(tau[lr]):.2f}" for lr in others},
        }
    for place, name in enumerate(("eta squared", "Spearman's correlation")):
        means = {
            lr: mean_interval([association(one["temperature"], one["degree"])[place] for one in runs])
            for lr, runs in by_rate.items()
        }
        blank = dict.fromkeys(("sd inside", "logits' spread before", "after", "vanilla's"), "")
        cells = {f"at lr {lr:g}": f"{means[lr].mean:.2f}".replace("nan", "-") for lr in others}
        yield {
            "out-neighbors": name,
            "paper": "-",
            "temperature": shown(means[best], 2),
            **blank,
            **cells,
        }


_SPREAD = ("spread", "temperature")


def _draw(settings: TokenGraphSettings, context: ExperimentContext, runs: list[dict[str, Any]], lr: float) -> None:
    from statistics import fmean

    from ssa.statistics import mean_interval

    degrees = DEGREES[settings.spread]
    caption = (
        f"Temperature of each node, {settings.vocabulary} a seed, of {settings.seeds} seeds (points, moved sideways at "
        f"random), and the mean over nodes with its 95 % interval over seeds; SSA at its best learning rate, {lr:g}."
    )
    with context.figure("figure", 4.5, 3.5, caption) as drawing:
        import numpy as np

        axes, apart = drawing.add_subplot(), np.random.default_rng(0)
        for place, degree in enumerate(degrees):
            values = np.concatenate([of_degree(one, "temperature", degree) for one in runs])
            places = place + apart.uniform(-0.3, 0.3, len(values))
            axes.plot(places, values, ".", color=plot_style.GRAY, markersize=2.5, alpha=0.5, zorder=1)
        means = [mean_interval([fmean(of_degree(one, "temperature", degree)) for one in runs]) for degree in degrees]
        ends = [[one.mean - one.low for one in means], [one.high - one.mean for one in means]]
        axes.errorbar(
            range(len(degrees)), [one.mean for one in means], yerr=ends, color=plot_style.INK, marker="o", capsize=4
        )
        axes.set_xticks(range(len(degrees)), [str(degree) for degree in degrees])
        axes.grid(False, axis="x")
        axes.set_xlabel("out-neighbors of the node")
        axes.set_ylabel("temperature")


def _conclusions(measured: list[tuple[float, float]]) -> Iterator[Conclusion]:
    from ssa.statistics import mean_interval

    eta, rho = (mean_interval(values) for values in zip(*measured, strict=True))
    yield Conclusion(
        "the number of neighbors explains more than half of the variance of the temperature over nodes",
        "share of the variance over nodes explained by degree",
        eta,
        "higher",
        0.5,
    )
    yield Conclusion(
        "nodes with fewer neighbors get larger temperatures",
        "Spearman's correlation of temperature and degree over nodes",
        rho,
        "lower",
    )
