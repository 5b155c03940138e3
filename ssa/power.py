"""Power of the paired t-test, and the number of seeds that it needs; needs scipy.

A test compares n paired differences of standard deviation ``sd`` with zero, in one direction, at ``level``: 0.025 is
the usual two-sided test at 5%, apart from the wrong direction.  Powers are exact for normal differences: the noncentral
t distribution, which for few seeds gives much less than the normal one.
"""

from __future__ import annotations

import math
from bisect import bisect_left

POWER = 0.8
MOST_SEEDS = 1_000_000


def power(difference: float, sd: float, n: int, level: float = 0.025) -> float:
    """Probability that the test shows a true difference; ``difference`` is positive in the direction tested.

    Raises:
        ValueError: fewer than 2 pairs, a negative ``sd``, or a level outside 0 to 0.5.
    """
    _check(sd, n, level)
    if sd == 0:
        return float(difference > 0)
    from scipy.stats import nct, t

    return float(nct.sf(t.isf(level, n - 1), n - 1, difference / sd * math.sqrt(n)))


def seeds_needed(difference: float, sd: float, level: float = 0.025) -> int | None:
    """The smallest n whose `power` reaches `POWER`; None above `MOST_SEEDS`.

    Raises:
        ValueError: the difference is not positive, or as for `power`.
    """
    if not difference > 0:
        raise ValueError(f"{difference}: not a positive difference")
    candidates = range(2, MOST_SEEDS + 1)  # the power grows with n
    found = bisect_left(candidates, POWER, key=lambda n: power(difference, sd, n, level))
    return candidates[found] if found < len(candidates) else None


def smallest_shown(sd: float, n: int, level: float = 0.025) -> float:
    """The smallest true difference whose `power` with n pairs reaches `POWER`, in the unit of ``sd``.

    Raises:
        ValueError: as for `power`.
    """
    _check(sd, n, level)
    from scipy.optimize import brentq

    above = 1.0  # in standard deviations
    while power(above, 1.0, n, level) < POWER:
        above *= 2
    return sd * float(brentq(lambda effect: power(effect, 1.0, n, level) - POWER, 0.0, above))


def equivalence_power(margin: float, sd: float, n: int, level: float = 0.05, difference: float = 0.0) -> float:
    """Probability that two one-sided tests show a difference within ``margin`` of 0, if it is ``difference``.

    The integral over the estimated standard deviation (Phillips, J. Pharmacokinet. Biopharm. 18, 1990).

    Raises:
        ValueError: the margin is not positive, or as for `power`.
    """
    _check(sd, n, level)
    if not margin > 0:
        raise ValueError(f"{margin}: not a margin")
    if sd == 0:
        return float(abs(difference) < margin)
    from scipy.integrate import quad
    from scipy.special import ndtr
    from scipy.stats import chi, t

    error, threshold = sd / math.sqrt(n), float(t.isf(level, n - 1))

    def shown(ratio: float) -> float:
        """Density of the estimated sd over the true one, times the probability that the mean is near enough to 0."""
        near = (margin - ratio * threshold * error) / error
        inside = ndtr(near - difference / error) - ndtr(-near - difference / error)
        return float(inside * chi.pdf(ratio * root, n - 1) * root)

    root = math.sqrt(n - 1)
    widest = margin / (threshold * error)  # a larger estimate shows nothing
    end = min(widest, float(chi.isf(1e-12, n - 1)) / root)
    return float(quad(shown, 0.0, end, limit=200)[0])


def sd_factors(n: int, confidence: float = 0.8) -> tuple[float, float]:
    """Factors by which the true standard deviation may be below and above that of n normal values.

    Raises:
        ValueError: fewer than 2 values.
    """
    if n < 2:
        raise ValueError(f"{n}: too few values for a standard deviation")
    from scipy.stats import chi2

    tail = (1 - confidence) / 2
    low, high = (math.sqrt((n - 1) / float(chi2.ppf(p, n - 1))) for p in (1 - tail, tail))
    return low, high


def _check(sd: float, n: int, level: float) -> None:
    if n < 2 or not sd >= 0 or not 0 < level < 0.5:
        raise ValueError(f"{n} pairs, sd {sd}, level {level}: out of range")
