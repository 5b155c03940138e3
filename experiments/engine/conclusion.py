"""Conclusions: claims decided by a confidence interval, or on a grid by tests against two sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.engine.claims import Claim
from experiments.engine.verdict import Decision
from ssa.statistics import Estimate


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
    def verdict(self) -> str:
        """Decided if the whole interval is on one side of the threshold."""
        above, below = self.estimate.low > self.threshold, self.estimate.high < self.threshold
        if not above and not below:
            return "undecided"
        return "holds" if above == (self.expected == "higher") else "does not hold"

    @property
    def sentence(self) -> str:
        return self._stated(self.verdict)

    def _stated(self, verdict: str) -> str:
        return f"{verdict.capitalize()}: {self.claim} ({self._numbers('95% interval')})."

    def _numbers(self, interval: str) -> str:
        if not self.estimate.n:
            return f"{self.quantity}: no seed yet"
        if self.estimate.n == 1:
            return f"{self.quantity}: {self._digits(self.estimate.mean)}, 1 seed"
        mean, low, high = map(self._digits, (self.estimate.mean, self.estimate.low, self.estimate.high))
        return f"{self.quantity}: {mean}, {interval} {low} to {high}, {self.estimate.n} seeds"

    def _digits(self, value: float) -> str:
        """At least three digits, and enough to distinguish the value from the threshold."""
        for digits in range(3, 17):
            text = f"{value:.{digits}g}"
            if float(text) != self.threshold or value == self.threshold:
                break
        return text

    def row(self, scale: str) -> dict[str, Any]:
        """A row of conclusions.csv; ``scale=smoke`` decides nothing."""
        is_decided = scale != "smoke" or self.verdict.startswith("unfinished")
        verdict = self.verdict if is_decided else "no verdict at scale=smoke"
        return {
            "claim": self.claim,
            "verdict": verdict,
            "quantity": self.quantity,
            "mean": self.estimate.mean,
            "low": self.estimate.low,
            "high": self.estimate.high,
            "seeds": self.estimate.n,
            "expected": f"{self.expected} than {self.threshold:g}",
            "sentence": self._stated(verdict),
        }


@dataclass(frozen=True)
class ClaimConclusion(Conclusion):
    """A claim of a grid: tests against zero and an effect size, corrected for all claims, decide it."""

    decision: Decision = field(kw_only=True)

    @classmethod
    def of(cls, claim: Claim, decision: Decision) -> ClaimConclusion:
        return cls(claim.text, claim.quantity, decision.interval, claim.expected, decision=decision)

    @property
    def verdict(self) -> str:
        return self.decision.verdict

    def _stated(self, verdict: str) -> str:
        sizes, more = self.decision.comparison.sizes, self.decision.more_seeds
        numbers = self._numbers(f"{'simultaneous ' if self.decision.n_claims > 1 else ''}95% interval")
        numbers += f"; {sizes.name}: {sizes.expected:.3g}"
        if self.verdict == "practically equal":
            numbers += f"; within {sizes.margin:.3g}: p = {self.decision.p.equal:.2g}"
        numbers += f"; more seeds: for {more.difference:.3g}" if more and more.difference != sizes.expected else ""
        return f"{verdict.capitalize()}: {self.claim} ({numbers})."

    def row(self, scale: str) -> dict[str, Any]:
        sizes, more = self.decision.comparison.sizes, self.decision.more_seeds
        added = {
            "sd": self.estimate.sd,
            "paper": math.nan if sizes.paper is None else sizes.paper,
            "smallest": sizes.smallest,
            **{f"p {name.replace('_', ' ')}": p for name, p in self.decision.p._asdict().items()},
            "more seeds": more.number if more else math.nan,
            "more seeds for": more.difference if more else math.nan,
        }
        row = super().row(scale)
        return {name: row[name] for name in row if name != "sentence"} | added | {"sentence": row["sentence"]}
