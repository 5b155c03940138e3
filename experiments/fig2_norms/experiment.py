"""Figure 2: query-key norms and spikiness, of maps that are fitted to targets, and of a trained lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.fig2_norms.settings import NormSettings

if TYPE_CHECKING:
    from experiments.engine.context import ExperimentContext


def run(settings: NormSettings, context: ExperimentContext) -> None:
    """Each panel computes its jobs and draws its figure; a further one is a further function here."""
    from experiments.fig2_norms import lookup, targets

    panels = [targets.panel(settings, context), lookup.panel(settings, context)]
    context.table("runs", [row for panel in panels for row in panel.runs])
    context.summary(
        "Query-key norms with and without a temperature of the queries.",
        [row for panel in panels for row in panel.summary],
        f"Mean [95% interval] over {settings.seeds} seeds; ratios: geometric mean, paired at equal seed. "
        "norm: mean over tokens (and heads) of the operator norm of tau_i W. Fit: at equal KL to the target. Lookup: "
        "at the learning rate that suits vanilla best. Spikiness: share of the keys attended to, lower is spikier. "
        f"scale={settings.scale}.",
    )
    for panel in panels:
        for conclusion in panel.conclusions:
            context.conclude(conclusion)
