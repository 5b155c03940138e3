from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssa.statistics import (
    Estimate,
    bootstrap_interval,
    holm,
    jackknife_interval,
    mean_interval,
    paired_interval,
    paired_p_value,
    wilson,
)

Z = 1.959963984540054  # 97.5 % quantile of the standard normal


@pytest.mark.parametrize("n", [1, 7, 200])
def test_wilson_at_the_ends_in_closed_form(n: int) -> None:
    assert wilson(0, n) == (0, pytest.approx(Z**2 / (n + Z**2)))
    assert wilson(n, n) == (pytest.approx(n / (n + Z**2)), 1)


@pytest.mark.parametrize(("successes", "n"), [(1, 2), (3, 10), (19, 20), (500, 1000)])
def test_wilson_inverts_the_score_test(successes: int, n: int) -> None:
    share = successes / n
    for end in wilson(successes, n):
        assert abs(share - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / n))


@pytest.mark.parametrize(("successes", "n"), [(0, 4), (2, 9), (50, 60)])
def test_failures_mirror_successes(successes: int, n: int) -> None:
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_more_confidence_and_fewer_trials_are_wider() -> None:
    widths = [high - low for low, high in (wilson(3, 10), wilson(3, 10, 0.99), wilson(30, 100))]
    assert widths[2] < widths[0] < widths[1]


@pytest.mark.parametrize("n", [5, 20, 100, 1000])
def test_wilson_has_its_coverage(n: int) -> None:
    draw = np.random.default_rng(n)
    proportions = draw.uniform(size=20_000)
    ends = np.array([wilson(successes, n) for successes in range(n + 1)])[draw.binomial(n, proportions)]
    covered = np.mean((ends[:, 0] <= proportions) & (proportions <= ends[:, 1]))
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_out_of_range(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n}"):
        wilson(successes, n, confidence)


def test_the_mean_interval_equals_scipy() -> None:
    from scipy import stats

    generator = np.random.default_rng(0)
    for n in (2, 3, 10, 100):
        values = generator.normal(5, 3, n)
        expected = stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values))
        estimate = mean_interval(values.tolist())
        assert (estimate.low, estimate.high) == pytest.approx(expected)
        assert (estimate.mean, estimate.sd, estimate.n) == (
            pytest.approx(values.mean()),
            pytest.approx(values.std(ddof=1)),
            n,
        )


def test_a_paired_interval_is_that_of_the_paired_test() -> None:
    from scipy import stats

    generator = np.random.default_rng(1)
    base = generator.normal(0, 10, 8)
    values = base + generator.normal(1, 0.1, 8)
    expected = stats.ttest_rel(values, base).confidence_interval(0.95)
    estimate = paired_interval(values.tolist(), base.tolist())
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert estimate.low > 0  # the benefit of pairing: unpaired intervals are 100 times as wide


@pytest.mark.parametrize("n", [3, 10])
def test_95_percent_intervals_cover_95_percent_of_the_time(n: int) -> None:
    generator = np.random.default_rng(n)
    base = generator.normal(5.0, 10.0, (2000, n))
    differences = generator.normal(2.0, 1.0, (2000, n))
    alone = [mean_interval(row) for row in differences.tolist()]
    paired = [paired_interval(*rows) for rows in zip((base + differences).tolist(), base.tolist(), strict=True)]
    for estimates in (alone, paired):
        assert 0.93 <= sum(estimate.low <= 2.0 <= estimate.high for estimate in estimates) / 2000 <= 0.97
        # Enough draws to distinguish Student's quantile from the normal one.
        normal = sum(abs(estimate.mean - 2.0) <= Z * estimate.sd / math.sqrt(n) for estimate in estimates) / 2000
        assert normal < 0.93


@pytest.mark.parametrize("n", [3, 10])
def test_p_values_are_calibrated_under_the_null(n: int) -> None:
    base, values = np.random.default_rng(n).normal(2.0, 1.0, (2, 2000, n)).tolist()
    found = [paired_p_value(*rows) for rows in zip(values, base, strict=True)]
    assert 0.035 <= sum(p < 0.05 for p in found) / 2000 <= 0.065


SEEDS = st.integers(0, 2**32 - 1)


@given(n=st.integers(2, 30), seed=SEEDS, effect=st.floats(-5, 5), noise=st.floats(1e-3, 1e3))
def test_the_p_value_equals_scipy(n: int, seed: int, effect: float, noise: float) -> None:
    from scipy import stats

    base, deviations = np.random.default_rng(seed).normal(0, 1, (2, n))
    values = base + effect + noise * deviations
    found = paired_p_value(values.tolist(), base.tolist())
    assert found == pytest.approx(stats.ttest_rel(values, base).pvalue, rel=1e-6)
    estimate = paired_interval(values.tolist(), base.tolist())
    if abs(found - 0.05) > 1e-9:
        assert (found < 0.05) == (not estimate.low <= 0 <= estimate.high)


def test_p_values_at_the_edges() -> None:
    assert math.isnan(paired_p_value([], []))
    assert math.isnan(paired_p_value([1.0], [2.0]))
    assert math.isnan(paired_p_value([1.0, math.inf], [2.0, 3.0]))
    assert math.isnan(paired_p_value([1.0, math.nan, 3.0], [2.0, 3.0, 4.0]))
    assert paired_p_value([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1.0
    assert paired_p_value([0.1, 0.1, 0.1], [0.0, 0.0, 0.0]) == 0.0  # their mean is not quite 0.1
    assert paired_p_value([5e-324, 0.0], [0.0, 0.0]) == 1.0  # squares underflow
    with pytest.raises(ValueError, match="shorter"):
        paired_p_value([1.0, 2.0], [1.0])


P_VALUES = st.floats(0, 1) | st.just(math.nan) | st.sampled_from([0.0, 0.01, 0.025, 0.05, 1.0])


@given(st.lists(P_VALUES, max_size=8))
def test_holm_is_the_closed_bonferroni_test(p_values: list[float]) -> None:
    """The equivalent closed test (Marcus, Peritz, Gabriel 1976): a null is rejected with all intersections it is in.

    Bonferroni's p-value of an intersection is its smallest p-value times their number; the adjusted one is the largest.
    """
    tests = [place for place, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = holm(p_values)
    assert len(adjusted) == len(p_values)
    for place, found in enumerate(adjusted):
        if place not in tests:
            assert math.isnan(found)
            continue
        sets = [chosen for size in range(1, len(tests) + 1) for chosen in combinations(tests, size) if place in chosen]
        bonferroni = [len(chosen) * min(p_values[other] for other in chosen) for chosen in sets]
        assert found == pytest.approx(min(1.0, max(bonferroni)), rel=1e-12)


@given(st.lists(P_VALUES, max_size=40))
def test_holm_keeps_order_and_only_raises(p_values: list[float]) -> None:
    pairs = sorted((p, found) for p, found in zip(p_values, holm(p_values), strict=True) if not math.isnan(p))
    assert all(p <= found <= 1 for p, found in pairs)
    assert [found for _, found in pairs] == sorted(found for _, found in pairs)


def test_holm_of_four_by_hand_and_of_invalid_p_values() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03, 0.005])[::-1] == pytest.approx(
        [0.02, 0.06, math.nan, 0.06, 0.03], nan_ok=True
    )
    assert holm([]) == []
    for wrong in (-0.1, 1.5):
        with pytest.raises(ValueError, match="not a p-value"):
            holm([0.5, wrong])


def test_the_bootstrap_of_few_values_is_too_narrow_as_documented() -> None:
    draws = np.random.default_rng(5).normal(0.0, 1.0, (500, 5))
    estimates = [bootstrap_interval(row, resamples=500) for row in draws.tolist()]
    assert 0.79 <= sum(estimate.low <= 0 <= estimate.high for estimate in estimates) / 500 <= 0.89


def test_the_bootstrap_is_the_same_each_time_and_around_the_mean() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    estimate = bootstrap_interval(values)
    assert estimate == bootstrap_interval(values)
    assert min(values) < estimate.low < estimate.mean < estimate.high < max(values)


@pytest.mark.parametrize("interval", [mean_interval, bootstrap_interval])
def test_one_value_has_no_interval_and_no_values_have_no_mean(interval: Callable[[list[float]], Estimate]) -> None:
    estimate = interval([3.0])
    assert (estimate.mean, estimate.n) == (3.0, 1)
    assert math.isnan(estimate.low)
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_unpaired_values_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        paired_interval([1.0, 2.0], [1.0])


@pytest.mark.parametrize("n", [3, 5, 12])
def test_the_jackknife_of_a_mean_is_student_s_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n).tolist()
    found = jackknife_interval(lambda runs: sum(values[run] for run in runs) / len(runs), n)
    expected = mean_interval(values)
    assert found[:4] == pytest.approx(expected[:4])
    assert found.n == n


def test_two_runs_have_no_jackknife_interval() -> None:
    assert math.isnan(jackknife_interval(lambda runs: 1.0, 2).low)
