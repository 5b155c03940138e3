"""Claims of the experiments with their verdicts, corrected for the number of claims of an experiment."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssa import statistics
from ssa.statistics import Estimate, holm, p_greater, p_less

# By the first words of a verdict; color alone must not carry it
MARKS = {"holds": "✓", "does not hold": "✗", "practically equal": "≈", "undecided": "?", "unfinished": "…"}
LEVEL = 0.05  # of the two-sided test that a 95% interval stands for


@dataclass(frozen=True)
class Claim:
    """A row of ``<scale>_conclusions.csv``.

    Attributes:
        verdict: after the correction.
        alone: the verdict of the claim's own interval, where the correction changes it; else empty.
        mean, low, high: nan without a seed.
        expected: "lower than 0".
        paper: the paper's size in the claimed direction; None where it reports none.
        p: after Holm's correction; None where it is not known.
    """

    claim: str
    verdict: str
    quantity: str
    mean: float
    low: float
    high: float
    seeds: str
    expected: str
    paper: float | None
    p: float | None
    alone: str = ""

    @property
    def kind(self) -> str:
        return next((kind for kind in MARKS if self.verdict.startswith(kind)), "undecided")

    @property
    def mark(self) -> str:
        return MARKS[self.kind]

    @property
    def ours(self) -> str:
        """The estimate with its interval; a dash without a seed."""
        if math.isnan(self.mean):
            return "–"
        low, mean, high = (self._beside_threshold(value) for value in (self.low, self.mean, self.high))
        return mean if math.isnan(self.low) else f"{mean} [{low}, {high}]"

    @property
    def sentence(self) -> str:
        return self.claim[:1].upper() + self.claim[1:]

    @property
    def threshold(self) -> float:
        """The number in ``expected``; nan without one."""
        try:
            return float(self.expected.rpartition(" ")[2])
        except ValueError:
            return math.nan

    @property
    def test(self) -> tuple[object, ...]:
        """What decides it: claims that agree in it are one in counts and corrections."""
        return self.quantity, self.mean, self.low, self.high, self.seeds, self.expected

    def _beside_threshold(self, value: float) -> str:
        """With enough digits to tell it from the threshold."""
        enough = (digits for digits in range(3, 7) if float(f"{value:.{digits}g}") != self.threshold)
        return number(value, next(enough, 3))

    @property
    def difference_in_paper(self) -> float:
        """The paper's size with the sign of the claimed direction; nan where it reports none."""
        sign = -1 if self.expected.startswith("lower") else 1
        return math.nan if self.paper is None else sign * self.paper


def number(value: float, digits: int = 3) -> str:
    """With significant digits and a true minus."""
    return f"{value:.{digits}g}".replace("-", "−")


def read_claims(path: Path) -> list[Claim]:
    """The claims of an experiment, the main one first.

    Verdicts of grids are corrected where they are made.  Others follow from a claim's own interval; here Holm's
    correction over the experiment's claims is added, from the p-value that the interval implies.

    Raises:
        KeyError, ValueError: not a table of conclusions.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = [_claim(row) for row in rows]
    if not rows or "p as claimed" in rows[0] or not statistics.has_intervals():
        return found
    tests = {claim.test: _p_value(claim) for claim in found}  # two claims may rest on one
    corrected = dict(zip(tests, holm([*tests.values()]), strict=True))
    return [_corrected(claim, corrected[claim.test]) for claim in found]


def _claim(row: dict[str, str]) -> Claim:
    mean, low, high = (_number(row[name]) for name in ("mean", "low", "high"))
    paper, p = (_number(row.get(name, "-")) for name in ("paper", "p as claimed"))
    return Claim(
        row["claim"],
        row["verdict"],
        row["quantity"],
        mean,
        low,
        high,
        row["seeds"],
        row["expected"],
        None if math.isnan(paper) else paper,
        None if math.isnan(p) else p,
    )


def _number(text: str) -> float:
    return math.nan if text == "-" else float(text)


def _p_value(claim: Claim) -> float:
    """Two-sided p-value that the claim's interval implies; 1 without an interval."""
    estimate = _above_threshold(claim)
    return 1.0 if estimate is None else 2 * min(p_greater(estimate, 0), p_less(estimate, 0))


def seeds_to_decide(claim: Claim, n_claims: int) -> int | None:
    """Seeds, in all, with 80% power to decide a claim if its true value is the one seen; needs scipy.

    At the strictest of Holm's levels for ``n_claims``.  None without an interval, or above a million.
    """
    from ssa.power import seeds_needed

    estimate = _above_threshold(claim)
    if estimate is None or estimate.mean == 0:
        return None
    return seeds_needed(abs(estimate.mean), estimate.sd, LEVEL / 2 / n_claims)


def _above_threshold(claim: Claim) -> Estimate | None:
    """The claim's value less its threshold, from its interval (Student's t over seeds); None without one.

    A claim about 1 is about a ratio, whose interval is one of logarithms.
    """
    threshold, values = claim.threshold, (claim.mean, claim.low, claim.high)
    n = int(claim.seeds)
    if n < 2 or not all(math.isfinite(value) for value in (threshold, *values)):
        return None
    if threshold == 1 and min(values) > 0:
        threshold, values = 0.0, (math.log(claim.mean), math.log(claim.low), math.log(claim.high))
    mean, low, high = (value - threshold for value in values)
    of_one = Estimate(0, math.nan, math.nan, 1, n).with_confidence(1 - LEVEL)  # of sd 1
    return Estimate(mean, low, high, (high - low) / (of_one.high - of_one.low), n)


def _corrected(claim: Claim, p: float) -> Claim:
    if claim.kind in ("holds", "does not hold") and p > LEVEL:
        return replace(claim, verdict="undecided", alone=claim.verdict, p=p)
    return replace(claim, p=p)


def tally(claims: Iterable[Claim]) -> list[tuple[str, str, int]]:
    """Kind, mark and number of claims, in the order of `MARKS`."""
    counts = Counter(claim.kind for claim in claims)
    return [(kind, mark, counts[kind]) for kind, mark in MARKS.items() if counts[kind]]


def sized(claims: Iterable[Claim]) -> list[Claim]:
    """The claims that the paper gives a size for."""
    return [claim for claim in claims if claim.paper is not None]


def best_evidence(claims: Sequence[Claim]) -> Claim | None:
    """Of the claims with a size in the paper, the one with the most seeds, the first of equals."""
    finished = [claim for claim in sized(claims) if claim.kind != "unfinished"]
    return max(finished, key=lambda claim: int(claim.seeds), default=None)
