"""The figures of figure 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.engine.context import ExperimentContext
from experiments.engine.drawing import points
from experiments.fig3_token_graph.cells import DEGREES, LABELS, TokenGraphCell, TokenGraphGridSettings
from ssa.statistics import Estimate, mean_interval
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {
    "vanilla": style_of("none"),
    "ssa": style_of("ssa"),
    "wider": style_of("wider"),
    "constant": style_of("constant"),
}


def matrices(context: ExperimentContext, settings: TokenGraphGridSettings, cell: TokenGraphCell) -> None:
    """P*, and P of SSA and vanilla, for the first seed."""
    from matplotlib.colors import PowerNorm

    from ssa.theory.token_graph import TokenGraph

    graph = TokenGraph.draw(settings.vocabulary, DEGREES[settings.spread], settings.first_seed)
    order = graph.degrees.argsort(stable=True).numpy()
    shown = {"$P^*$": graph.transitions.numpy()}
    for method in ("ssa", "vanilla"):
        lr = cell.best(method)
        excess, l1 = (cell.values(method, lr, quantity)[0] for quantity in ("excess", "l1"))
        title = f"{LABELS[method]}, lr {lr:g}\n+{excess:.3f} nats, $L_1$ {l1:.3f}"
        shown[title] = np.asarray(cell.found[method, lr]["matrix"])
    caption = (
        f"Transition matrices for seed {settings.first_seed}, {settings.vocabulary} nodes sorted by out-degree (lines "
        f"mark changes), width {settings.width}, each method at its best learning rate. Titles: cross-entropy less the "
        f"graph's entropy of {graph.floor:.3f} nats per token, and L1 distance from P* under pi."
    )
    with context.figure("figure", plot_style.PAGE, 2.6, caption) as drawing:
        panels = drawing.subplots(1, 3, sharey=True)
        top = 1 / min(DEGREES[settings.spread])
        for axes, (title, matrix) in zip(panels, shown.items(), strict=True):
            image = axes.imshow(matrix[np.ix_(order, order)], norm=PowerNorm(0.5, 0, top))
            axes.grid(False)
            axes.set_title(title)
            axes.set_xlabel("next token")
            for line in np.flatnonzero(np.diff(graph.degrees[order].numpy())):
                axes.axhline(line + 0.5, color="white", linewidth=0.5, linestyle="--")
        panels[0].set_ylabel("last token")
        drawing.colorbar(
            image, ax=list(panels), label="probability", shrink=0.8, ticks=[0, top / 16, top / 4, top], format="%.2g"
        )


def grid(context: ExperimentContext, settings: TokenGraphGridSettings, found: list[TokenGraphCell]) -> None:
    """Every cell: the methods, and the differences of SSA to the others."""
    caption = (
        f"Mean and 95% interval over {settings.named_seeds} (default) or {settings.grid_seeds}. Left: each method at "
        "its best learning rate. Right: paired at equal seed; left of 0, SSA is closer to P*. "
        f"Default: vocabulary {settings.vocabulary}, degrees {'/'.join(map(str, DEGREES[settings.spread]))}, "
        f"width {settings.width}, {settings.steps} steps; each other row differs in one setting."
    )
    compared = (
        ("vanilla", False, "SSA - vanilla, both at vanilla's best rate", "white"),
        ("vanilla", True, "SSA - vanilla, each at its own best rate", None),
        ("wider", True, "SSA - wider, each at its own best rate", None),
    )
    with context.figure("figure_grid", plot_style.PAGE, 1.6 + 0.25 * len(found), caption) as drawing:
        left, right = drawing.subplots(1, 2, sharey=True)
        rows = range(len(found))

        def dots(axes: Axes, place: int, means: list[Estimate], method: str, **look: Any) -> None:
            places = [row + 0.2 * (place - 1) for row in rows]
            points(
                axes, places, means, horizontal=True, marker=STYLES[method].marker, color=STYLES[method].color, **look
            )

        for place, method in enumerate(("vanilla", "ssa", "wider")):
            means = [mean_interval(cell.values(method, cell.best(method), "excess")) for cell in found]
            dots(left, place, means, method, label=LABELS[method])
        for place, (baseline, tuned, label, fill) in enumerate(compared):
            means = [cell.difference(baseline, "excess", tuned=tuned) for cell in found]
            dots(right, place, means, baseline, label=label, markerfacecolor=fill)
        right.axvline(0, color=plot_style.INK, linewidth=0.8)
        left.set_xlim(left=0)
        left.set_yticks(rows, [cell.label for cell in found])
        left.invert_yaxis()
        left.set_xlabel("excess cross-entropy, nats per token")
        right.set_xlabel("difference, nats per token")
        for axes in (left, right):
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1))


def rates(context: ExperimentContext, settings: TokenGraphGridSettings, cell: TokenGraphCell) -> None:
    caption = f"The default cell by learning rate: mean and 95% interval over {settings.named_seeds}."
    with context.figure("figure_learning_rates", plot_style.COLUMN, 2.4, caption) as drawing:
        axes = drawing.add_subplot()
        for method in cell.methods:
            means = [mean_interval(cell.values(method, lr, "excess")) for lr in cell.rates]
            look = STYLES[method].line(label=LABELS[method], marker=STYLES[method].marker)
            points(axes, cell.rates, means, capsize=2, **look)
        axes.set_xscale("log")
        axes.set_xticks(cell.rates, [f"{lr:g}" for lr in cell.rates])
        axes.minorticks_off()
        axes.set(xlabel="initial learning rate", ylabel="excess cross-entropy,\nnats per token")
        axes.legend()
