"""Verdicts on claims: each rule on chosen numbers, and error rates and power of all of them by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from experiments.engine.claims import Claim, EffectSizes
from experiments.engine.conclusion import ClaimConclusion
from experiments.engine.experiment import find_experiment
from experiments.engine.grid import declared
from experiments.engine.verdict import EQUAL, SHOWN, Comparison, Decision, decide
from ssa.power import equivalence_power, power, seeds_needed, smallest_shown
from ssa.statistics import Estimate, mean_interval

SIZES = EffectSizes(smallest=0.01, paper=0.05)
DRAWS = 2000
SIDES: tuple[Literal["lower", "higher"], ...] = ("lower", "higher")


def compared(
    effect: float, error: float = 0.01, n: int = 12, sizes: EffectSizes = SIZES, expected: str = "lower"
) -> Comparison:
    """A comparison whose effect, as claimed, has a standard error."""
    mean = effect if expected == "higher" else -effect
    return Comparison(Estimate(mean, math.nan, math.nan, error * math.sqrt(n), n), expected, sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("expected", SIDES)
@pytest.mark.parametrize(
    ("effect", "error", "verdict"),
    [
        (0.100, 0.010, "holds, at least the paper's size"),
        (0.020, 0.005, "holds, smaller than the paper's"),
        (0.045, 0.010, "holds, size undecided"),
        (-0.030, 0.010, "does not hold"),
        (-0.004, 0.001, "does not hold"),
        (0.002, 0.002, "practically equal"),
        (-0.002, 0.002, "practically equal"),
        (0.010, 0.010, "undecided, smaller than the paper's, 85 more seeds"),
        (0.030, 0.020, "undecided, 6 more seeds"),
    ],
)
def test_each_verdict(expected: str, effect: float, error: float, verdict: str) -> None:
    (decision,) = decide([compared(effect, error, expected=expected)])
    assert decision.verdict == verdict


def test_smallest_size_of_interest_is_named() -> None:
    sizes = EffectSizes(0.05)
    large, small = (decide([compared(effect, 0.005, sizes=sizes)])[0].verdict for effect in (0.1, 0.02))
    assert large == "holds, at least the smallest size of interest"
    assert small == "holds, smaller than the smallest size of interest"


@pytest.mark.parametrize("n", [3, 5, 12])
def test_one_claim_is_decided_by_its_intervals(n: int) -> None:
    """Zero and the paper's size by the 95% interval, equality by the 90% interval."""
    draws = np.random.default_rng(n)
    for values in (*draws.normal(0.02, 0.04, (200, n)), *draws.normal(0.002, 0.01, (200, n))):
        difference = mean_interval(values.tolist())
        (decision,) = decide([Comparison(difference, "higher", SIZES)])
        low, high = difference.low, difference.high
        narrow = difference.with_confidence(0.9)
        if low > 0:
            kind = "at least" if low >= 0.05 else "smaller" if high <= 0.05 else "size undecided"
            assert decision.verdict.startswith(f"holds, {kind}")
        elif high < 0:
            assert decision.verdict == "does not hold"
        elif narrow.low >= -0.01 and narrow.high <= 0.01:
            assert decision.verdict == "practically equal"
        else:
            assert decision.kind == ("undecided, smaller than the paper's" if high <= 0.05 else "undecided")
        assert decision.interval[:3] == pytest.approx(difference[:3])


def test_holms_correction_counts() -> None:
    """p = 0.02 alone holds; beside three others it does not, but beside one smaller and nothing else it does."""
    from scipy import stats

    def claim(p: float) -> Comparison:
        return compared(float(stats.t.isf(p, 11)) * 0.01)

    def verdicts(*p: float) -> list[str]:
        return [decision.verdict.split(",")[0] for decision in decide([claim(one) for one in p])]

    assert verdicts(0.02) == ["holds"]
    assert verdicts(0.02, 0.5, 0.5, 0.5)[0] != "holds"
    assert verdicts(0.02, 0.012) == ["holds", "holds"]
    assert verdicts(0.02, 0.013) != ["holds", "holds"]
    assert verdicts(0.006, 0.5, 0.5, 0.5)[0] == "holds"


def test_claims_without_seeds_count() -> None:
    absent = Comparison(Estimate(math.nan, math.nan, math.nan, math.nan, 0), "lower", SIZES)
    one_pair = Comparison(Estimate(-0.1, math.nan, math.nan, math.nan, 1), "lower", SIZES)
    found = decide([compared(0.024), absent, one_pair])
    assert [decision.verdict.split(",")[0] for decision in found] == ["undecided", "undecided", "undecided"]
    assert decide([compared(0.024)])[0].verdict.startswith("holds")
    assert found[1].more_seeds is None
    assert decide([]) == []


def test_seed_without_a_finite_loss_decides_nothing() -> None:
    diverged = mean_interval([-0.1, math.inf, -0.1])
    (decision,) = decide([Comparison(diverged, "lower", SIZES)])
    assert (decision.verdict, decision.more_seeds) == ("undecided", None)


def test_equal_pairs() -> None:
    """Two rows that are one and the same model: no deviation."""
    same = Comparison(mean_interval([0.0, 0.0, 0.0]), "lower", SIZES)
    better = Comparison(mean_interval([-0.0625, -0.0625]), "lower", SIZES)
    assert [one.verdict for one in decide([same])] == ["practically equal"]
    assert [one.verdict for one in decide([better])] == ["holds, at least the paper's size"]


@pytest.mark.parametrize("n_claims", [1, 4])
def test_more_seeds_reach_80_percent_power(n_claims: int) -> None:
    sd = 0.08
    undecided = Comparison(Estimate(-0.01, math.nan, math.nan, sd, 3), "lower", SIZES)
    for decision in decide([undecided] * n_claims):
        assert decision.more_seeds is not None
        total = 3 + decision.more_seeds.number
        assert decision.more_seeds.difference == 0.05
        assert power(0.05, sd, total, SHOWN / n_claims) >= 0.8 > power(0.05, sd, total - 1, SHOWN / n_claims)
        assert decision.verdict == f"undecided, {total - 3} more seeds"


@pytest.mark.parametrize(("mean", "sd", "difference"), [(0.015, 0.05, 0.01), (0.0055, 0.0105, 0.005)])
def test_enough_seeds_for_the_papers_size_but_a_smaller_effect(mean: float, sd: float, difference: float) -> None:
    """Seeds for the smallest size of interest are named, or if there are enough for that, for half of it."""
    n = 12
    (decision,) = decide([Comparison(Estimate(-mean, math.nan, math.nan, sd, n), "lower", SIZES)])
    needed, for_larger = seeds_needed(difference, sd), seeds_needed(0.05 if difference == 0.01 else 0.01, sd)
    assert for_larger is not None
    assert needed is not None
    assert for_larger <= n < needed
    assert decision.more_seeds == (needed - n, difference)
    assert decision.verdict == f"undecided, smaller than the paper's, {needed - n} more seeds"


def test_no_practical_number_of_seeds() -> None:
    (decision,) = decide([Comparison(Estimate(0.0, math.nan, math.nan, 1e4, 3), "lower", SIZES)])
    assert decision.verdict == "undecided"


def test_interval_is_simultaneous() -> None:
    """Where it excludes zero, so does Holm's test."""
    for draw in np.random.default_rng(0).normal(0.02, 0.03, (200, 4, 5)):
        decisions = decide([Comparison(mean_interval(pair), "higher", SIZES) for pair in draw.tolist()])
        for decision in decisions:
            assert decision.interval.low <= 0 or decision.verdict.startswith("holds")
            assert decision.interval.high >= 0 or decision.verdict == "does not hold"


def test_sentence_names_the_interval_and_the_size() -> None:
    claim = Claim(group="GPT-2", row="SSA", against="vanilla", metric="loss")
    alone, several = (decide([compared(0.02, 0.005)] * count)[0] for count in (1, 4))
    text = "in GPT-2, SSA has a lower loss than vanilla (difference in loss, SSA - vanilla: -0.02"
    assert ClaimConclusion.of(claim, alone).sentence == (
        f"Holds, smaller than the paper's: {text}, 95% interval -0.031 to -0.009, 12 seeds; the paper's size: 0.05)."
    )
    (equal,) = decide([compared(0.002, 0.002)])
    assert ClaimConclusion.of(claim, equal).sentence.endswith(
        f"; the paper's size: 0.05; within 0.01: p = {equal.p.equal:.2g})."
    )
    (beyond,) = decide([compared(0.010, 0.010)])
    assert ClaimConclusion.of(claim, beyond).sentence.endswith("; the paper's size: 0.05; more seeds: for 0.01).")
    smoke, laptop = (ClaimConclusion.of(claim, alone).row(scale) for scale in ("smoke", "laptop"))
    assert laptop["sentence"].startswith("Holds, smaller than the paper's: in GPT-2")
    assert smoke["sentence"].startswith("No verdict at scale=smoke: in GPT-2")
    assert (smoke["verdict"], laptop["verdict"]) == ("no verdict at scale=smoke", "holds, smaller than the paper's")
    assert f"{text}, simultaneous 95% interval -0.0349 to -0.0051, " in ClaimConclusion.of(claim, several).sentence


# Simulation


def papers_size(name: str = "GPT-2, fine-tuning") -> EffectSizes:
    experiment = find_experiment("table3_main")
    grid = declared(experiment)
    (claim,) = (claim for claim in grid.claims if claim.group == name)
    return grid.effect_sizes(claim, experiment)


def test_papers_sizes_are_log_ratios_of_its_perplexities() -> None:
    sizes = {name: papers_size(f"{name}, fine-tuning").expected for name in ("GPT-2", "Pythia", "Llama")}
    assert sizes == pytest.approx({"GPT-2": 0.0530, "Pythia": 0.0063, "Llama": 0.1227}, abs=5e-5)


def simulated(effects: Sequence[float], sd: float, n: int, sizes: EffectSizes) -> list[list[Decision]]:
    """Decisions of 2,000 draws of one experiment; claims share the baseline, so their differences correlate by 0.5."""
    draws = np.random.default_rng([n, len(effects)])
    baseline = draws.normal(0.0, sd / math.sqrt(2), (DRAWS, 1, n))
    rows = draws.normal(0.0, sd / math.sqrt(2), (DRAWS, len(effects), n)) - np.array(effects)[:, None]
    return [
        decide([Comparison(mean_interval(pairs), "lower", sizes) for pairs in draw])
        for draw in (rows - baseline).tolist()
    ]


def rate(draws: list[list[Decision]], verdict: str, claims: slice = slice(None)) -> float:
    """Share of draws in which a verdict on any of the claims starts so."""
    return sum(any(one.kind.startswith(verdict) for one in draw[claims]) for draw in draws) / len(draws)


def at_most(level: float) -> float:
    """The level and three standard errors of its simulated rate."""
    return level + 3 * math.sqrt(level * (1 - level) / DRAWS)


@pytest.mark.parametrize("n_claims", [1, 4])
@pytest.mark.parametrize("n", [5, 12])
def test_error_rates_and_power(n: int, n_claims: int) -> None:
    sizes = papers_size()
    size = sizes.expected
    level = SHOWN / n_claims
    sd = 0.9 * size / smallest_shown(1.0, n, level)  # somewhat more than 80% power

    none = simulated([0.0] * n_claims, sd, n, sizes)
    assert rate(none, "holds") <= at_most(SHOWN)
    assert rate(none, "does not hold") <= at_most(SHOWN)

    whole = simulated([size] * n_claims, sd, n, sizes)
    assert rate(whole, "practically equal") <= at_most(EQUAL)
    assert rate(whole, "holds, at least") <= at_most(SHOWN)
    assert rate(whole, "holds, smaller") <= at_most(SHOWN)
    assert rate(whole, "does not hold") == 0

    half = simulated([size / 2] * n_claims, sd, n, sizes)
    assert rate(half, "holds, at least") <= at_most(SHOWN)
    assert rate(half, "does not hold") <= 0.005

    only_first = [[0.0] * n_claims, *([effect] + [0.0] * (n_claims - 1) for effect in (size / 2, size))]
    for effects in only_first:
        draws, first = simulated(effects, sd, n, sizes), slice(0, 1)
        assert rate(draws, "holds", first) == pytest.approx(power(effects[0], sd, n, level), abs=0.05)
        assert rate(draws, "holds", slice(1, None)) <= at_most(SHOWN)
    seen = {one.kind for draw in none + whole for one in draw}
    assert {"holds, size undecided", "undecided", "undecided, smaller than the paper's"} <= seen


@pytest.mark.parametrize("n_claims", [1, 4])
@pytest.mark.parametrize("n", [5, 12])
def test_error_rates_and_power_of_practically_equal(n: int, n_claims: int) -> None:
    """Pairs that agree well enough to show equality within the smallest size of interest."""
    sizes = papers_size()
    sd = sizes.smallest * (0.9 if n == 12 else 0.65)  # equality and a difference are both possible
    margin = rate(simulated([sizes.smallest] * n_claims, sd, n, sizes), "practically equal")
    assert 0.005 <= margin <= at_most(EQUAL)
    none = simulated([0.0] * n_claims, sd, n, sizes)
    assert rate(none, "holds") <= at_most(SHOWN)
    first = rate(none, "practically equal", slice(0, 1))
    shown = rate(none, "holds", slice(0, 1)) + rate(none, "does not hold", slice(0, 1))  # real but tiny
    predicted = equivalence_power(sizes.margin, sd, n, EQUAL / n_claims)
    assert predicted - 0.05 - shown <= first
    if n_claims == 1:
        assert first <= predicted + 0.05
