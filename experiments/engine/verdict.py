"""Verdicts on the claims of a grid: one-sided paired t-tests against zero and effect sizes, with Holm's correction.

Each statement, such as "it holds" or "it is smaller than the paper's", is a family of tests, one for each claim of the
experiment, with Holm's correction over the family: the probability that it is wrongly made of any claim is at most
`SHOWN`, and that of "practically equal" at most `EQUAL`.  All claims count, also those without runs.
``experiments/README.md`` has the rules as a table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from experiments.engine.claims import EffectSizes
from ssa.power import seeds_needed
from ssa.statistics import Estimate, holm, p_equivalent, p_greater, p_less

SHOWN = 0.025  # level of each one-sided test
EQUAL = 0.05  # level of equivalence, as usual: the 90% interval is within the margin


class Comparison(NamedTuple):
    """A paired difference over seeds, the side of zero that is claimed, and the effect sizes to compare it with."""

    difference: Estimate
    expected: Literal["lower", "higher"]
    sizes: EffectSizes
    seeds: int = 0  # that are planned; with fewer pairs nothing is tested

    @property
    def is_unfinished(self) -> bool:
        return self.difference.n < self.seeds

    @property
    def effect(self) -> Estimate:
        """The difference with a positive sign where it is as claimed; without an interval."""
        sign = 1 if self.expected == "higher" else -1
        return self.difference._replace(mean=sign * self.difference.mean, low=math.nan, high=math.nan)


class PValues(NamedTuple):
    """One-sided p-values after Holm's correction; each is small if the statement is shown."""

    as_claimed: float
    opposite: float
    at_least_expected_size: float
    below_expected_size: float
    equal: float


class MoreSeeds(NamedTuple):
    """Seeds to add for 80% power to show a difference."""

    number: int
    difference: float


@dataclass(frozen=True)
class Decision:
    """The verdict on one claim among ``n_claims``."""

    comparison: Comparison
    p: PValues
    n_claims: int

    @property
    def interval(self) -> Estimate:
        """The difference with a simultaneous 95% interval (Bonferroni): it covers all claims of the experiment."""
        return self.comparison.difference.with_confidence(1 - 2 * SHOWN / self.n_claims)

    @property
    def kind(self) -> str:
        """The verdict without a number of seeds."""
        if self.comparison.is_unfinished:
            return "unfinished"
        size = self.comparison.sizes.name
        below = self.p.below_expected_size <= SHOWN
        smaller = f"smaller than {size}".removesuffix(" size")
        if self.p.as_claimed <= SHOWN:
            if self.p.at_least_expected_size <= SHOWN:
                return f"holds, at least {size}"
            return f"holds, {smaller}" if below else "holds, size undecided"
        if self.p.opposite <= SHOWN:
            return "does not hold"
        if self.p.equal <= EQUAL:
            return "practically equal"
        return f"undecided, {smaller}" if below else "undecided"

    @property
    def verdict(self) -> str:
        """The verdict; if it is undecided, with the number of further seeds that would likely decide it."""
        if self.comparison.is_unfinished:
            return f"unfinished, {self.comparison.difference.n} of {self.comparison.seeds} seeds"
        if self.more_seeds is None:
            return self.kind
        return f"{self.kind}, {self.more_seeds.number:,} more seed{'s' if self.more_seeds.number > 1 else ''}"

    @cached_property
    def more_seeds(self) -> MoreSeeds | None:
        """Seeds that an undecided claim lacks for 80% power, at the strictest of Holm's levels and the spread seen.

        For the expected size; if there are enough for that, for the smallest of interest, then for half of it, a
        quarter and so on.  None if the claim is decided, without a spread, or if no practical number suffices.
        """
        seen, sizes = self.comparison.difference, self.comparison.sizes
        if (
            not self.kind.startswith("undecided") or not 0 < seen.sd < math.inf
        ):  # also nan, as for one seed or a loss that is not finite
            return None
        difference = sizes.expected
        while (needed := seeds_needed(difference, seen.sd, strictest_level(self.n_claims))) is not None:
            if needed > seen.n:
                return MoreSeeds(needed - seen.n, difference)
            difference = min(sizes.smallest, difference / 2)
        return None


def strictest_level(n_claims: int) -> float:
    """Level of the first of Holm's tests."""
    return SHOWN / n_claims


def decide(comparisons: Sequence[Comparison]) -> list[Decision]:
    """The verdict on each claim of an experiment, from all of them."""

    def family(p_value: Callable[[Estimate, EffectSizes], float]) -> list[float]:
        """Without all seeds the p-value is 1: the number of claims is fixed before the runs."""
        p = [1.0 if one.is_unfinished else p_value(one.effect, one.sizes) for one in comparisons]
        return holm([1.0 if math.isnan(one) else one for one in p])

    families = zip(
        family(lambda effect, sizes: p_greater(effect, 0)),
        family(lambda effect, sizes: p_less(effect, 0)),
        family(lambda effect, sizes: p_greater(effect, sizes.expected)),
        family(lambda effect, sizes: p_less(effect, sizes.expected)),
        family(lambda effect, sizes: p_equivalent(effect, sizes.margin)),
        strict=True,
    )
    return [
        Decision(comparison, PValues(*p), len(comparisons)) for comparison, p in zip(comparisons, families, strict=True)
    ]
