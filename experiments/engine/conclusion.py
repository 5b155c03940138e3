"""Conclusions: claims decided by a confidence interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ssa.statistics import Estimate

Verdict = Literal["holds", "does not hold", "undecided"]


def shown(estimate: Estimate, digits: int = 3) -> str:
    """``1.23 [1.10, 1.36]``: the mean and its interval; a dash if there is none."""
    if math.isnan(estimate.mean):
        return "-"
    mean, low, high = (f"{value:.{digits}f}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


@dataclass(frozen=True)
class Conclusion:
    """A claim and the estimate that decides it.

    Attributes:
        claim: a clause: "a query temperature fits the same maps with a smaller norm".
        quantity: what is estimated, with its unit: "difference in norms, SSA - vanilla".
        estimate: the quantity over seeds.
        expected: the side of ``threshold`` that the claim predicts.
        threshold: 0 for a difference, 1 for a ratio.
    """

    claim: str
    quantity: str
    estimate: Estimate
    expected: Literal["higher", "lower"]
    threshold: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """Decided if the whole interval is on one side of the threshold."""
        above, below = self.estimate.low > self.threshold, self.estimate.high < self.threshold
        if not above and not below:
            return "undecided"
        return "holds" if above == (self.expected == "higher") else "does not hold"

    @property
    def sentence(self) -> str:
        mean, low, high = map(self._digits, (self.estimate.mean, self.estimate.low, self.estimate.high))
        return (
            f"{self.verdict.capitalize()}: {self.claim} ({self.quantity}: {mean}, 95% interval {low} to {high}, "
            f"{self.estimate.n} seeds)."
        )

    def _digits(self, value: float) -> str:
        """At least three digits, and enough to distinguish the value from the threshold."""
        for digits in range(3, 17):
            text = f"{value:.{digits}g}"
            if float(text) != self.threshold or value == self.threshold:
                break
        return text

    def row(self) -> dict[str, Any]:
        return {
            "claim": self.claim,
            "verdict": self.verdict,
            "quantity": self.quantity,
            "mean": self.estimate.mean,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "seeds": self.estimate.n,
            "expected": f"{self.expected} than {self.threshold:g}",
            "sentence": self.sentence,
        }
