"""Power of the paired t-test: scipy's and statsmodels' numbers, and simulated tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ssa.power import MOST_SEEDS, equivalence_power, power, sd_factors, seeds_needed, smallest_shown

CASES = [(0.5, 1.0, 5), (0.053, 0.03, 5), (0.053, 0.12, 12), (0.005, 0.002, 3), (1.0, 1.0, 2), (0.1, 1.0, 1000)]


@pytest.mark.parametrize("level", [0.025, 0.025 / 4, 0.05])
@pytest.mark.parametrize(("difference", "sd", "n"), CASES)
def test_power_equals_statsmodels(difference: float, sd: float, n: int, level: float) -> None:
    statsmodels = pytest.importorskip("statsmodels.stats.power")
    expected = statsmodels.TTestPower().power(difference / sd, n, level, alternative="larger")
    assert power(difference, sd, n, level) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("difference", "sd"), [(0.053, 0.03), (0.053, 0.12), (0.00628, 0.0019), (0.005, 0.0019)])
def test_seeds_needed_equal_statsmodels(difference: float, sd: float) -> None:
    statsmodels = pytest.importorskip("statsmodels.stats.power")
    exact = statsmodels.TTestPower().solve_power(difference / sd, None, 0.025, 0.8, alternative="larger")
    assert seeds_needed(difference, sd) == math.ceil(exact)


@pytest.mark.parametrize(("n", "effect"), [(5, 1.7), (12, 0.9), (3, 3.0)])
def test_power_is_the_rate_of_rejections(n: int, effect: float) -> None:
    draws = np.random.default_rng(n).normal(effect, 1.0, (20_000, n))
    rate = np.mean(stats.ttest_1samp(draws, 0.0, axis=1, alternative="greater").pvalue <= 0.025)
    assert power(effect, 1.0, n) == pytest.approx(rate, abs=0.012)
    normal = stats.norm.sf(stats.norm.isf(0.025) - effect * math.sqrt(n))
    assert abs(normal - rate) > 0.03, "the normal approximation would be seen"


def test_power_without_an_effect_is_the_level() -> None:
    assert power(0.0, 1.0, 7, 0.01) == pytest.approx(0.01)
    assert power(-1.0, 1.0, 7, 0.01) < 0.01


@pytest.mark.parametrize(("difference", "sd"), [(0.053, 0.03), (1.0, 10.0), (1.0, 0.1)])
@pytest.mark.parametrize("level", [0.025, 0.005])
def test_seeds_needed_is_the_first_number_that_suffices(difference: float, sd: float, level: float) -> None:
    n = seeds_needed(difference, sd, level)
    assert n is not None
    assert power(difference, sd, n, level) >= 0.8
    assert n == 2 or power(difference, sd, n - 1, level) < 0.8


def test_no_practical_number_of_seeds() -> None:
    assert seeds_needed(1e-6, 1.0) is None
    assert power(1e-6, 1.0, MOST_SEEDS) < 0.8


@pytest.mark.parametrize("n", [2, 3, 5, 12, 100])
def test_smallest_shown_has_80_percent_power(n: int) -> None:
    difference = smallest_shown(0.03, n, 0.00625)
    assert power(difference, 0.03, n, 0.00625) == pytest.approx(0.8)


@pytest.mark.parametrize(("n", "margin", "difference"), [(5, 2.0, 0.0), (12, 1.0, 0.0), (12, 1.0, 0.5), (3, 0.5, 0.0)])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_equivalence_power_is_the_rate_of_intervals_within_the_margin(
    n: int, margin: float, difference: float, level: float
) -> None:
    draws = np.random.default_rng(n).normal(difference, 1.0, (20_000, n))
    half = stats.t.isf(level, n - 1) * draws.std(axis=1, ddof=1) / math.sqrt(n)
    rate = np.mean(np.abs(draws.mean(axis=1)) + half <= margin)
    assert equivalence_power(margin, 1.0, n, level, difference) == pytest.approx(rate, abs=0.012)


def test_equivalence_power_at_the_margin_is_at_most_the_level() -> None:
    for n in (3, 12, 200):
        assert equivalence_power(0.5, 1.0, n, difference=0.5) <= 0.05 + 1e-6


def test_without_spread_every_difference_is_seen() -> None:
    assert (power(0.1, 0.0, 2), power(0.0, 0.0, 2), power(-0.1, 0.0, 2)) == (1.0, 0.0, 0.0)
    assert seeds_needed(0.1, 0.0) == 2
    assert smallest_shown(0.0, 5) == 0.0
    assert equivalence_power(0.1, 0.0, 2) == 1.0
    assert equivalence_power(0.1, 0.0, 2, difference=0.1) == 0.0


@pytest.mark.parametrize("n", [3, 12])
def test_true_spread_is_within_the_factors(n: int) -> None:
    low, high = sd_factors(n, 0.8)
    seen = np.random.default_rng(n).normal(0.0, 1.0, (20_000, n)).std(axis=1, ddof=1)
    assert np.mean((low * seen <= 1.0) & (high * seen >= 1.0)) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power(0.1, 1.0, 1), "1 pairs"),
        (lambda: power(0.1, math.nan, 5), "sd nan"),
        (lambda: power(0.1, 1.0, 5, 0.5), r"level 0\.5"),
        (lambda: seeds_needed(0.0, 1.0), "not a positive difference"),
        (lambda: equivalence_power(0.0, 1.0, 5), "not a margin"),
        (lambda: smallest_shown(-1.0, 5), r"sd -1\.0"),
        (lambda: sd_factors(1), "too few"),
    ],
)
def test_out_of_range(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
