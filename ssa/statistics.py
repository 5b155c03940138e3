"""How sure a number is."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion (JASA 22, 1927), which holds near 0 and 1 and for small n too.

    Args:
        successes: from 0 to n.
        n: independent trials, at least 1.
        confidence: how often the interval is to hold the true proportion.

    Raises:
        ValueError: out of range.
    """
    if not 0 <= successes <= n or n < 1 or not 0 < confidence < 1:
        raise ValueError(f"{successes} of {n} at {confidence}: no proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / n, z * z / n
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return (0.0 if successes == 0 else center - half), (1.0 if successes == n else center + half)
