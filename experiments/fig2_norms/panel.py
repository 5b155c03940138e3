"""Settings of figure 2, and result rows of its panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import TableRow
from experiments.engine.experiment import TheorySettings
from ssa.config import PositiveFloat, PositiveInt
from ssa.statistics import Estimate, mean_interval, shown

Share = Annotated[float, Field(gt=0, lt=1)]
SomeRates = Annotated[list[PositiveFloat], Field(min_length=1)]
Decays = Annotated[list[PositiveFloat], Field(min_length=2)]
LABELS = {"vanilla": "vanilla", "ssa": "SSA", "free": "free"}
_SETUP = ("panel", "target", "width", "heads", "spread", "penalty", "decay", "lr", "method", "seed")
_FOUND = (
    *("error", "explained", "l1", "norm", "norm_mean", "norm_max", "norm_geometric", "frobenius"),
    *("tau_min", "tau_max", "spikiness", "target_spikiness", "spikiness_error"),
)


class NormSettings(TheorySettings):
    """Settings of the fit to given maps and of the lookup.  The first value of a list is the main one."""

    tokens: Annotated[int, Field(ge=8)] = Field(description="fit: N, rows and columns of the target map")
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        description="fit: D of the embeddings, below N; the first with all spreads, the others with the main spread"
    )
    mean_sharpness: PositiveFloat = Field(description="fit: mean sharpness s over rows of scaled targets")
    spread: PositiveFloat = Field(description="fit: the main spread")
    spreads: Annotated[list[Annotated[float, Field(ge=1)]], Field(min_length=1)] = Field(
        description="fit: ratio of largest to smallest sharpness, or group size, among a target's rows"
    )
    levels: Annotated[list[Share], Field(min_length=1)] = Field(
        description="fit: levels of fit at which norms are compared, as shares of vanilla's at the weakest decay"
    )
    decays: Decays = Field(description="fit: strengths of the penalty on effective norms")
    weight_decays: Decays = Field(description="fit: strengths of the penalty on weights")
    fit_lr: PositiveFloat = Field(description="fit: Adam's learning rate")
    fit_steps: PositiveInt = Field(description="fit: optimizer steps")
    items: Annotated[int, Field(ge=2)] = Field(description="lookup: L, a power of 2")
    value_dim: PositiveInt = Field(description="lookup: m")
    shapes: Annotated[list[Annotated[str, Field(pattern=r"^\d+x\d+$")]], Field(min_length=1)] = Field(
        description="lookup: width x heads, such as 16x2; all but the first only with the first query_levels"
    )
    query_levels: Annotated[list[Annotated[str, Field(pattern=r"^\d+-\d+$")]], Field(min_length=1)] = Field(
        description="lookup: levels of the queried nodes, such as 0-5; level l has 2^l items"
    )
    lookup_lrs: SomeRates = Field(description="lookup: Adam's learning rates; results are at vanilla's best")
    lookup_steps: PositiveInt = Field(description="lookup: optimizer steps")
    batch: PositiveInt = Field(description="lookup: contexts per step, each with one query")

    @model_validator(mode="after")
    def _a_target_can_be_drawn(self) -> Self:
        if self.spread not in self.spreads:
            raise ValueError(f"spread={self.spread:g}: valid: one of spreads, {', '.join(map(str, self.spreads))}")
        largest = min(64.0, (self.tokens / 8) ** 2)
        for spread in self.spreads:
            if spread > largest:
                raise ValueError(f"spreads={spread:g}: no groups of {self.tokens} tokens; valid: 1 to {largest:g}")
        for width in self.widths:
            if width >= self.tokens:
                raise ValueError(f"widths={width}: valid: less than tokens={self.tokens}")
        return self

    @model_validator(mode="after")
    def _a_tree_has_its_levels(self) -> Self:
        depth = self.items.bit_length() - 1
        if self.items != 1 << depth:
            raise ValueError(f"items={self.items}: valid: a power of 2, such as {1 << depth}")
        for levels in self.query_levels:
            low, high = map(int, levels.split("-"))
            if not low <= high <= depth:
                raise ValueError(f"query_levels={levels}: valid: LOW-HIGH from 0 to {depth} with items={self.items}")
        for shape in self.shapes:
            width, heads = map(int, shape.split("x"))
            if not heads or not width or width % heads:
                raise ValueError(f"shapes={shape}: valid: WIDTHxHEADS, where HEADS divides WIDTH")
        return self


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


def summary_row(panel: str, setup: str, quantity: str, values: Mapping[str, Sequence[float]]) -> TableRow:
    """A row of the summary, from each method's values, one per seed; a dash for missing methods."""
    row = {"panel": panel, "setup": setup, "quantity": quantity}
    for method, label in LABELS.items():
        row[label] = _mean(values.get(method, ()))
    for method in ("ssa", "free"):
        estimate = ratio(values[method], values["vanilla"]) if method in values else _NONE
        row[f"{LABELS[method]} / vanilla"] = shown(estimate)
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
