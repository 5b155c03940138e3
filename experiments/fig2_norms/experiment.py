"""Figure 2: query-key norms and spikiness, for maps fitted to targets and for a trained lookup."""

from __future__ import annotations

from experiments.engine.context import ExperimentContext
from experiments.fig2_norms import lookup, targets
from experiments.fig2_norms.panel import NormSettings


def run(settings: NormSettings, context: ExperimentContext) -> None:
    """Computes and draws both panels."""
    panels = [targets.panel(settings, context), lookup.panel(settings, context)]
    context.table("runs", [row for panel in panels for row in panel.runs])
    context.summary(
        "Query-key norms with and without a query temperature.",
        [row for panel in panels for row in panel.summary],
        f"Mean [95% interval] over {settings.named_seeds}; ratios: geometric mean, paired at equal seed. "
        "norm: mean over tokens (and heads) of the operator norm of tau_i W. Fit: at equal KL to the target. Lookup: "
        "at vanilla's best learning rate. Spikiness: share of the keys attended to, lower is spikier. "
        f"scale={settings.scale}.",
    )
    context.conclude(*(conclusion for panel in panels for conclusion in panel.conclusions))
