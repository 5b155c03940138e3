"""Figure 2, left: the norm at which an attention map fits a given target."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext, TableRow
from experiments.engine.drawing import error_bars, points
from experiments.engine.job_cache import CachedJob
from experiments.fig2_norms.panel import LABELS, NormSettings, Panel, ratio, run_row, smaller, summary_row
from ssa.statistics import mean_interval
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES = {"scaled": "rows s_i x_i^T M x_j", "groups": "rows uniform over groups"}
TITLES = {"scaled": r"rows $s_i\, x_i^\top M x_j$", "groups": FAMILIES["groups"]}
QUANTITIES = ("norm_mean", "norm_max", "norm_geometric", "norm", "frobenius", "l1", "spikiness", "spikiness_error")
LOOKS: dict[str, dict[str, Any]] = {
    "vanilla": {"linestyle": ":", "marker": "o"},
    "ssa": {"linestyle": "-", "marker": "s"},
    "free": {"linestyle": "--", "marker": "^"},
}


class FitCell(NamedTuple):
    """A method on a target."""

    family: str
    width: int
    penalty: str
    spread: float
    method: str


Paths = dict[FitCell, list[list[dict[str, float]]]]  # for each seed, one row per decay


def panel(settings: NormSettings, context: ExperimentContext) -> Panel:
    """Fits all targets; draws KL against norm and the ratio of norms against the spread."""
    found = context.compute({cell: _cached_job(settings, cell) for cell in _cells(settings)})
    paths: Paths = {
        cell: [list(path) for _, path in itertools.groupby(rows, key=itemgetter("seed"))]
        for cell, rows in found.items()
    }
    context.table("fit_levels", list(_level_rows(settings, paths)))
    _draw(settings, context, paths)
    runs = [
        run_row(
            {**row, "error": row["kl"]},
            **{"panel": "fit", "target": cell.family, "width": cell.width, "heads": 1, "spread": cell.spread},
            **{"penalty": cell.penalty, "lr": settings.fit_lr, "method": LABELS[cell.method]},
        )
        for cell, seeds in paths.items()
        for path in seeds
        for row in path
    ]
    return Panel(runs, list(_summary(settings, paths)), list(_conclusions(settings, paths)))


def _cells(settings: NormSettings) -> Iterator[FitCell]:
    """The main width and penalty at every spread; other widths and plain weight decay at the main spread."""
    main, *others = settings.widths
    for family in FAMILIES:
        for spread in settings.spreads:
            yield from (FitCell(family, main, "effective", spread, method) for method in LABELS)
        for width in others:
            yield from (FitCell(family, width, "effective", settings.spread, method) for method in LABELS)
        # without free temperatures, which would absorb all of the scale at no cost
        yield from (FitCell(family, main, "weights", settings.spread, method) for method in ("vanilla", "ssa"))


def _cached_job(settings: NormSettings, cell: FitCell) -> CachedJob:
    from ssa.theory.target_maps import fit

    decays = settings.decays if cell.penalty == "effective" else settings.weight_decays
    same = {"n": settings.tokens, "mean": settings.mean_sharpness, "lr": settings.fit_lr, "steps": settings.fit_steps}
    same |= settings.model_dump(include={"seeds", "first_seed", "vectorized"})
    return fit, {**cell._asdict(), **same, "decays": decays}


def at_equal_fit(paths: Paths, cell: FitCell, share: float, name: str) -> dict[str, list[float]]:
    """A quantity of each method, one per seed, at a share of what vanilla explains at the weakest decay."""
    from ssa.theory.target_maps import at_level

    methods = [method for method in LABELS if cell._replace(method=method) in paths]
    ends = [min(path, key=lambda row: row["decay"]) for path in paths[cell._replace(method="vanilla")]]
    return {
        method: [
            at_level(path, share * end["explained"], name)
            for path, end in zip(paths[cell._replace(method=method)], ends, strict=True)
        ]
        for method in methods
    }


def _level_rows(settings: NormSettings, paths: Paths) -> Iterator[TableRow]:
    vanilla = [cell for cell in paths if cell.method == "vanilla"]
    for cell, share, name in itertools.product(vanilla, settings.levels, QUANTITIES):
        found = at_equal_fit(paths, cell, share, name)
        for method in list(found)[1:]:  # the first is vanilla
            where = {**cell._asdict(), "method": LABELS[method], "level": share, "quantity": name}
            yield {**where, **ratio(found[method], found["vanilla"])._asdict()}


def _summary(settings: NormSettings, paths: Paths) -> Iterator[TableRow]:
    share = settings.levels[0]
    for cell in paths:
        if cell.method != "vanilla":
            continue
        setup = f"{FAMILIES[cell.family]}, D = {cell.width}, spread {cell.spread:g}"
        names = {"norm_mean": "norm"}
        if cell.penalty == "weights":
            setup += ", weight decay"
            names |= {"norm": "norm of W alone"}
        elif cell.spread == settings.spread and cell.width == settings.widths[0]:
            names |= {"norm_max": "norm, largest of tokens", "norm_geometric": "norm at geometric mean of tau 1"}
            names |= {"l1": "L1 to the target", "spikiness_error": "distance of spikiness to the target's"}
        for name, quantity in names.items():
            yield summary_row("fit", setup, quantity, at_equal_fit(paths, cell, share, name))


def _conclusions(settings: NormSettings, paths: Paths) -> Iterator[Conclusion]:
    share = settings.levels[0]

    def found(family: str, spread: float, penalty: str = "effective") -> dict[str, list[float]]:
        cell = FitCell(family, settings.widths[0], penalty, spread, "vanilla")
        return at_equal_fit(paths, cell, share, "norm_mean")

    quantity = "mean over tokens of the norm of tau_i W"
    for family, kind in (("scaled", "of rows of one form and unequal sharpness"), ("groups", "uniform over groups")):
        norms = found(family, settings.spread)
        claim = (
            f"at equal KL, maps {kind}, spread {settings.spread:g}, are reached with a smaller mean query-key norm "
            "with a query temperature"
        )
        yield smaller(claim, quantity, norms["ssa"], norms["vanilla"])
    if 1 in settings.spreads and settings.spread != 1:
        mixed, equal = found("scaled", settings.spread), found("scaled", 1)
        ratios = [[a / b for a, b in zip(each["ssa"], each["vanilla"], strict=True)] for each in (mixed, equal)]
        yield Conclusion(
            "the smaller norm comes with mixed sharpness: the ratio is lower than for rows of equal sharpness",
            f"ratio of the ratios at spread {settings.spread:g} and 1",
            ratio(*ratios),
            "lower",
            1.0,
        )
    norms = found("scaled", settings.spread, "weights")
    claim = (
        "under plain weight decay too, which temperatures escape, the same maps are reached with a smaller mean norm"
    )
    yield smaller(claim, quantity, norms["ssa"], norms["vanilla"])


def _draw(settings: NormSettings, context: ExperimentContext, paths: Paths) -> None:
    width, share = settings.widths[0], settings.levels[0]
    caption = (
        f"Maps fitted to targets of {settings.tokens} tokens, D = {width}. Left, middle: KL to the target against the "
        f"mean over tokens of the norm of tau_i W, one point per decay, spread {settings.spread:g}. Right: ratio of "
        f"norms to vanilla where both explain {100 * share:g}% of what vanilla can; filled: {FAMILIES['scaled']}, "
        f"open: {FAMILIES['groups']}. Points: means over {settings.named_seeds} (ratios: geometric, paired); bars: 95% "
        "intervals (Student's t). free: one learned temperature per query."
    )
    with context.figure("fit", plot_style.PAGE, 2.6, caption) as figure:
        *curves, ratios = figure.subplots(1, 3)
        colors = {method: style_of("none" if method == "vanilla" else method).color for method in LABELS}
        for axes, family in zip(curves, FAMILIES, strict=True):
            for method in LABELS:
                seeds = paths[FitCell(family, width, "effective", settings.spread, method)]
                _curve(axes, seeds, label=LABELS[method], color=colors[method], **LOOKS[method])
            axes.set(title=TITLES[family], xlabel=r"mean of $\|\tau_i W\|$")
        for which in ("x", "y"):  # compared with each other
            high = max(getattr(axes, f"get_{which}lim")()[1] for axes in curves)
            for axes in curves:
                axes.set(**{f"{which}lim": (0, high)})
        curves[0].set_ylabel("KL to the target (nats)")
        curves[0].legend()
        for family, fill in zip(FAMILIES, ("full", "none"), strict=True):
            cells = [FitCell(family, width, "effective", spread, "vanilla") for spread in settings.spreads]
            found = [at_equal_fit(paths, cell, share, "norm_mean") for cell in cells]
            for method, shift in (("ssa", 0.97), ("free", 1.03)):  # so that bars do not overlap
                estimates = [ratio(each[method], each["vanilla"]) for each in found]
                look = {**LOOKS[method], "color": colors[method], "fillstyle": fill}
                points(ratios, [shift * spread for spread in settings.spreads], estimates, **look, elinewidth=0.8)
        ratios.axhline(1, color=plot_style.GRAY, linewidth=0.8)
        ratios.set_xscale("log", base=2)
        ratios.set_xticks(settings.spreads, [f"{spread:g}" for spread in settings.spreads])
        ratios.set(title="at equal KL", xlabel="spread of the target's rows", ylabel="norm / vanilla's")


def _curve(axes: Axes, seeds: list[list[dict[str, float]]], **look: Any) -> None:
    """Mean KL against mean norm, one point per decay."""
    norms, errors = (
        [mean_interval([path[number][name] for path in seeds]) for number in range(len(seeds[0]))]
        for name in ("norm_mean", "kl")
    )
    places = [norm.mean for norm in norms]
    points(axes, places, errors, xerr=error_bars(norms), markersize=3.5, elinewidth=0.8, **look)
