"""Convergence speed on curves with known answers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssa.report.convergence import Curve, speed_up, tokens_to_reach


def test_a_loss_between_two_validations_is_interpolated() -> None:
    assert tokens_to_reach(Curve([100, 200, 300], [4.0, 3.0, 2.0]), 2.5) == 250


def test_the_first_crossing_counts_also_when_the_loss_rises_again() -> None:
    assert tokens_to_reach(Curve([100, 200, 300, 400], [4.0, 2.0, 3.0, 1.0]), 3.0) == 150


def test_a_loss_that_is_not_reached_has_no_tokens() -> None:
    assert math.isnan(tokens_to_reach(Curve([100, 200], [4.0, 3.0]), 2.0))


def test_a_loss_of_the_first_validation() -> None:
    assert tokens_to_reach(Curve([0, 100], [4.0, 3.0]), 5.0) == 0


def test_half_the_tokens_is_a_speed_up_of_two() -> None:
    slow = Curve([100, 200, 300, 400], [4.0, 3.0, 2.0, 1.0])
    fast = Curve([50, 100, 150, 200], [4.0, 3.0, 2.0, 1.0])
    assert speed_up(slow, fast) == pytest.approx(2.0)


def test_a_slower_run_is_counted_by_the_loss_that_it_reaches() -> None:
    baseline, slower = Curve([100, 200], [4.0, 2.0]), Curve([100, 200], [4.0, 3.0])
    assert speed_up(baseline, slower) == pytest.approx(150 / 200)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=20), st.lists(st.floats(0.1, 10), min_size=2, max_size=20))
def test_swapping_inverts_and_a_run_is_as_fast_as_itself(one: list[float], two: list[float]) -> None:
    first, second = (Curve([10.0 * (n + 1) for n in range(len(losses))], losses) for losses in (one, two))
    assert speed_up(first, second) == pytest.approx(1 / speed_up(second, first))
    assert speed_up(first, first) == 1


def test_no_speed_up_without_validations() -> None:
    empty, whole = Curve([], []), Curve([0, 100], [4.0, 3.0])
    assert math.isnan(speed_up(empty, whole))
    assert math.isnan(speed_up(whole, empty))


def test_no_speed_up_for_a_run_that_never_improves() -> None:
    better, worse = Curve([0, 100, 200], [4.0, 3.0, 2.0]), Curve([0, 100, 200], [4.0, 5.0, 6.0])
    assert math.isnan(speed_up(better, worse))
    assert math.isnan(speed_up(worse, better))
