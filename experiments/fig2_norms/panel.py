"""Result rows of figure 2's panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.engine.conclusion import Conclusion, shown
from experiments.engine.context import TableRow
from ssa.statistics import Estimate, mean_interval

LABELS = {"vanilla": "vanilla", "ssa": "SSA", "free": "free"}
_SETUP = ("panel", "target", "width", "heads", "spread", "penalty", "decay", "lr", "method", "seed")
_FOUND = (
    *("error", "explained", "l1", "norm", "norm_mean", "norm_max", "norm_geometric", "frobenius"),
    *("tau_min", "tau_max", "spikiness", "target_spikiness", "spikiness_error"),
)


@dataclass
class Panel:
    """Results of a panel."""

    runs: list[TableRow]
    summary: list[TableRow]
    conclusions: list[Conclusion]


def run_row(found: Mapping[str, Any], **setup: Any) -> TableRow:
    """A row of the table of runs, with 5 significant digits; a dash for missing values."""
    row = {**found, **setup}
    return {name: short(row.get(name, math.nan)) for name in (*_SETUP, *_FOUND)}


def summary_row(
    panel: str, setup: str, quantity: str, values: Mapping[str, Sequence[float]], baseline: str = "vanilla"
) -> TableRow:
    """A row of the summary, from each method's values, one per seed; a dash for missing methods."""
    row = {"panel": panel, "setup": setup, "quantity": quantity}
    for method, label in LABELS.items():
        row[label] = _mean(values.get(method, ()))
    for method, label in LABELS.items():
        if method != baseline:
            estimate = ratio(values[method], values[baseline]) if method in values else _NONE
            row[f"{label} / {LABELS[baseline]}"] = shown(estimate)
    return row


def _mean(values: Sequence[float]) -> str:
    """The mean and interval, or the number of seeds without a value: a mean of the others would be biased."""
    missing = sum(not math.isfinite(value) for value in values)
    if missing:
        return f"- ({missing} of {len(values)} seeds without)"
    return shown(mean_interval(values), 3 if math.fsum(values) >= 0.1 * len(values) else 5) if values else "-"


def smaller(claim: str, quantity: str, ssa: Sequence[float], vanilla: Sequence[float]) -> Conclusion:
    """The claim that a quantity of SSA is smaller than vanilla's, decided by their ratio."""
    return Conclusion(claim, f"{quantity}, ratio SSA / vanilla", ratio(ssa, vanilla), "lower", 1.0)


def ratio(values: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Geometric mean of the ratios at equal seed with its interval; nan if any seed has no positive finite value.

    The standard deviation is that of the logarithms.
    """
    pairs = list(zip(values, baseline, strict=True))
    if not all(0 < one < math.inf and 0 < other < math.inf for one, other in pairs):
        return _NONE._replace(n=len(pairs))
    return mean_interval([math.log(one / other) for one, other in pairs]).exponential()


_NONE = Estimate(math.nan, math.nan, math.nan, math.nan, 0)


def short(value: Any) -> Any:
    """A number with 5 significant digits; other values as they are."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
