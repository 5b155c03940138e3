"""Forest plot: claims with a size in the paper, on one axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ssa.report.page.claims import Claim, number


class Line(NamedTuple):
    """One claim; numbers are places on the axis, in percent of its length, None where there is no number."""

    experiment: str
    group: str
    claim: Claim
    mean: float | None
    low: float | None
    high: float | None
    paper: float | None


class Forest(NamedTuple):
    """What the template draws; ``ticks``: place and label."""

    metric: str
    lines: list[Line]
    ticks: list[tuple[float, str]]


def forest(claims: Sequence[tuple[str, Claim]]) -> Forest | None:
    """The plot of claims with a size in the paper, under the names of their experiments; None if there is none.

    An axis has one unit: claims on another metric than the most frequent one are left out.
    """
    known = [(name, claim) for name, claim in claims if claim.paper is not None]
    if not known:
        return None
    metrics = [_metric(claim) for _, claim in known]
    metric = max(metrics, key=metrics.count)
    known = [(name, claim) for name, claim in known if _metric(claim) == metric]
    values = [value for _, one in known for value in (one.low, one.high, one.mean, one.difference_in_paper)]
    reach = 1.05 * max(abs(value) for value in values if math.isfinite(value)) or 1.0

    def place(value: float) -> float | None:
        return round(50 + 50 * value / reach, 2) if math.isfinite(value) else None

    lines = [
        Line(name, _group(claim), claim, *map(place, (claim.mean, claim.low, claim.high, claim.difference_in_paper)))
        for name, claim in known
    ]
    return Forest(metric, lines, [(place(value) or 0.0, number(value)) for value in _ticks(reach)])


def _metric(claim: Claim) -> str:
    """Without the compared rows."""
    return claim.quantity.partition(", ")[0]


def _group(claim: Claim) -> str:
    """The group in "in GROUP, ROW has a ...", where rows and groups may contain commas."""
    text, row = claim.claim.removeprefix("in "), claim.quantity.removeprefix(f"{_metric(claim)}, ").rpartition(" - ")[0]
    return text.partition(f", {row} ")[0]


def _ticks(reach: float) -> list[float]:
    """Round numbers, symmetric about zero."""
    power = 10.0 ** math.floor(math.log10(reach))
    step = next(power * times for times in (0.2, 0.5, 1, 2, 5) if reach / (power * times) < 4)
    count = int(reach / step)
    return [step * place for place in range(-count, count + 1)]
