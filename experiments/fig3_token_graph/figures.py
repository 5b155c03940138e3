"""What is drawn for figure 3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.fig3_token_graph.cells import DEGREES, LABELS, TokenGraphCell, TokenGraphGridSettings
from ssa.statistics import Estimate, mean_interval
from ssa.viz import plot_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from experiments.engine.context import ExperimentContext

MARKS = {"vanilla": ("s", "--"), "ssa": ("o", "-"), "wider": ("^", "-."), "constant": ("D", ":")}


def colors() -> dict[str, object]:
    """Of the methods, from dark to light."""
    return dict(zip(("ssa", "wider", "vanilla", "constant"), plot_style.shades(4), strict=True))


def matrices(context: ExperimentContext, settings: TokenGraphGridSettings, cell: TokenGraphCell) -> None:
    """P*, and P of SSA and of vanilla, of seed 0."""
    import numpy as np
    from matplotlib.colors import PowerNorm

    from ssa.theory.token_graph import TokenGraph

    graph = TokenGraph.draw(settings.vocabulary, DEGREES[settings.spread], 0)
    order = graph.degrees.argsort(stable=True).numpy()
    shown = {"P*": graph.transitions.numpy()}
    for method in ("ssa", "vanilla"):
        lr = cell.best(method)
        excess, l1 = (cell.values(method, lr, quantity)[0] for quantity in ("excess", "l1"))
        title = f"{LABELS[method]}, lr {lr:g}\n+{excess:.3f} nats, L1 {l1:.3f}"
        shown[title] = np.asarray(cell.found[method, lr]["matrix"])
    caption = (
        f"Transition matrices of seed 0, {settings.vocabulary} nodes sorted by out-degree (lines: where it changes), "
        f"width {settings.width}, each method at its best learning rate. Above: cross-entropy less the graph's "
        f"entropy of {graph.floor:.3f} nats a token, and the L1 distance from P* under pi, of this seed."
    )
    with context.figure("figure", 7, 3.3, caption) as drawing:
        panels = drawing.subplots(1, 3, sharey=True)
        top = 1 / min(DEGREES[settings.spread])
        for axes, (title, matrix) in zip(panels, shown.items(), strict=True):
            image = axes.imshow(matrix[np.ix_(order, order)], norm=PowerNorm(0.5, 0, top))
            axes.grid(False)
            axes.set_title(title, fontsize=8.5)
            axes.set_xlabel("next token")
            for line in np.flatnonzero(np.diff(graph.degrees[order].numpy())):
                axes.axhline(line + 0.5, color="white", linewidth=0.5, linestyle="--")
        panels[0].set_ylabel("last token")
        drawing.colorbar(
            image, ax=list(panels), label="probability", shrink=0.8, ticks=[0, top / 16, top / 4, top], format="%.2g"
        )


def grid(context: ExperimentContext, settings: TokenGraphGridSettings, found: list[TokenGraphCell]) -> None:
    """Every cell: the methods, and what SSA has less than they."""
    caption = (
        f"Mean and 95 % interval over {settings.seeds} seeds (default) or {settings.grid_seeds}. Left: each method at "
        "its best learning rate of those tried. Right: paired at equal seed; left of 0, SSA is closer to P*. "
        f"Default: vocabulary {settings.vocabulary}, degrees {'/'.join(map(str, DEGREES[settings.spread]))}, "
        f"width {settings.width}, {settings.steps} steps; each other row differs in one thing."
    )
    with context.figure("figure_grid", 7, 2 + 0.27 * len(found), caption) as drawing:
        left, right = drawing.subplots(1, 2, sharey=True)
        rows = range(len(found))
        for place, method in enumerate(("vanilla", "ssa", "wider")):
            means = [mean_interval(cell.values(method, cell.best(method), "excess")) for cell in found]
            _dots(left, means, [row + 0.2 * (place - 1) for row in rows], MARKS[method][0], colors()[method], method)
        compared = (("vanilla", False, "SSA - vanilla, both at vanilla's best rate", "white"), *_TUNED)
        for place, (baseline, tuned, label, fill) in enumerate(compared):
            means = [cell.difference(baseline, "excess", tuned=tuned) for cell in found]
            mark, color = MARKS[baseline][0], colors()[baseline]
            _dots(right, means, [row + 0.2 * (place - 1) for row in rows], mark, color, label, fill)
        right.axvline(0, color=plot_style.INK, linewidth=0.8)
        left.set_xlim(left=0)
        left.set_yticks(rows, [cell.label for cell in found])
        left.invert_yaxis()
        left.set_xlabel("excess cross-entropy, nats a token")
        right.set_xlabel("difference, nats a token")
        for axes in (left, right):
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=7.5)


_TUNED = (
    ("vanilla", True, "SSA - vanilla, each at its own best rate", None),
    ("wider", True, "SSA - wider, each at its own best rate", None),
)


def rates(context: ExperimentContext, settings: TokenGraphGridSettings, cell: TokenGraphCell) -> None:
    """The default cell: how much hangs on the learning rate."""
    caption = f"The default cell, by learning rate: mean and 95 % interval over {settings.seeds} seeds."
    with context.figure("figure_learning_rates", 4.5, 3.3, caption) as drawing:
        axes = drawing.add_subplot()
        for method in cell.methods:
            means = [mean_interval(cell.values(method, lr, "excess")) for lr in cell.rates]
            ends = [[one.mean - one.low for one in means], [one.high - one.mean for one in means]]
            mark, line = MARKS[method]
            axes.errorbar(
                cell.rates,
                [one.mean for one in means],
                yerr=ends,
                marker=mark,
                linestyle=line,
                color=colors()[method],
                label=LABELS[method],
                capsize=2,
                markersize=4,
            )
        axes.set_xscale("log")
        axes.set_xticks(cell.rates, [f"{lr:g}" for lr in cell.rates])
        axes.minorticks_off()
        axes.set_xlabel("learning rate at the start")
        axes.set_ylabel("excess cross-entropy,\nnats a token")
        axes.legend()


def _dots(
    axes: Axes,
    means: list[Estimate],
    places: list[float],
    mark: str,
    color: object,
    label: str,
    fill: str | None = None,
) -> None:
    """Rows of means with their intervals."""
    axes.errorbar(
        [one.mean for one in means],
        places,
        xerr=[[one.mean - one.low for one in means], [one.high - one.mean for one in means]],
        linestyle="none",
        marker=mark,
        markersize=4.5,
        color=color,
        markerfacecolor=fill or color,
        elinewidth=1,
        label=LABELS.get(label, label),
    )
