from __future__ import annotations

import math

import numpy as np
import pytest

from ssa.statistics import wilson

Z = 1.959963984540054  # the 97.5 % point of the standard normal


@pytest.mark.parametrize("n", [1, 7, 200])
def test_none_and_all_in_closed_form(n: int) -> None:
    assert wilson(0, n) == (0, pytest.approx(Z**2 / (n + Z**2)))
    assert wilson(n, n) == (pytest.approx(n / (n + Z**2)), 1)


@pytest.mark.parametrize(("successes", "n"), [(1, 2), (3, 10), (19, 20), (500, 1000)])
def test_the_ends_are_where_the_score_test_turns(successes: int, n: int) -> None:
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
def test_it_holds_the_proportion_as_often_as_it_says(n: int) -> None:
    draw = np.random.default_rng(n)
    proportions = draw.uniform(size=20_000)
    ends = np.array([wilson(successes, n) for successes in range(n + 1)])[draw.binomial(n, proportions)]
    covered = np.mean((ends[:, 0] <= proportions) & (proportions <= ends[:, 1]))
    assert 0.93 < covered < 0.97


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_out_of_range(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=f"{successes} of {n}"):
        wilson(successes, n, confidence)
