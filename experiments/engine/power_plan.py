"""Power of a planned grid, from the spread of pairs seen so far: part of ``plan=true``.

Only the spread is used, never the mean difference, so that planning from pilot runs does not test them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.engine.claims import Claim, EffectSizes
from experiments.engine.experiment import Experiment
from experiments.engine.grid import Grid, GridSettings
from experiments.engine.grid_results import Results
from experiments.engine.grid_runs import GridCell, Recorded
from experiments.engine.verdict import EQUAL, strictest_level
from ssa.config import SCALES, Scale
from ssa.errors import UserError
from ssa.launch.run import Run
from ssa.power import MOST_SEEDS, equivalence_power, power, sd_factors, seeds_needed, smallest_shown
from ssa.statistics import Estimate, mean_interval

_COLUMNS = {
    "spread": "standard deviation of a paired difference",
    "shows": "smallest difference shown with 80% power",
    "interval": "predicted half-width, simultaneous 95%",
    "size": "the paper's, or * the smallest of interest",
    "power": "probability to show that size if it is true",
    "equal": "probability to show practical equality if there is no difference",
    "seeds": "for 80% power at that size",
    "(smallest)": "seeds for the smallest difference of interest",
}


@dataclass(frozen=True)
class ClaimPower:
    """What a fixed number of seeds can show of a claim, at the strictest of Holm's levels.

    Attributes:
        claim: the claim.
        sizes: the effect sizes that it is judged against.
        seeds: number of seeds, fixed before the runs.
        spread: standard deviation of a paired difference.
        pairs: number of pairs that it was seen on.
        source: where they are.
        n_claims: number of claims, tested together.
    """

    claim: Claim
    sizes: EffectSizes
    seeds: int
    spread: float
    pairs: int
    source: str
    n_claims: int

    @property
    def smallest_shown(self) -> float:
        """The smallest difference that is shown with 80% power, in the metric's unit."""
        return smallest_shown(self.spread, self.seeds, strictest_level(self.n_claims))

    @property
    def half_width(self) -> float:
        """Predicted half-width of the simultaneous 95% interval."""
        expected = Estimate(0.0, math.nan, math.nan, self.spread, self.seeds)
        return expected.with_confidence(1 - 2 * strictest_level(self.n_claims)).high

    def seeds_for(self, difference: float) -> int | None:
        """Number of seeds for 80% power; None if it is not practical."""
        return seeds_needed(difference, self.spread, strictest_level(self.n_claims))

    @property
    def power(self) -> float:
        """Probability of "holds" if the true difference is the expected size."""
        return power(self.sizes.expected, self.spread, self.seeds, strictest_level(self.n_claims))

    @property
    def power_of_equality(self) -> float:
        """Probability that equivalence is shown if there is no difference."""
        return equivalence_power(self.sizes.margin, self.spread, self.seeds, EQUAL / self.n_claims)


def claim_powers(
    experiment: Experiment,
    grid: Grid,
    settings: GridSettings,
    planned: Mapping[GridCell, Run | None],
    frame: pd.DataFrame,
    recorded: Recorded,
) -> tuple[list[ClaimPower], list[Claim]]:
    """The power of each claim at the scale, and the claims of which no two pairs have been seen.

    Pairs come from the finished runs of this grid or the committed results at its scale, whichever has more, else from
    the committed results at the nearest smaller scale.

    Args:
        planned: from `experiments.engine.grid_runs.runs`.
        frame: from `ssa.record.runs.load`; may be empty.
        recorded: records of runs that were not trained here, which are in ``frame`` too.
    """
    found, without = [], []
    claims = grid.claims_at(settings.scale)
    own = Results(experiment, grid, settings, planned, {}, {}, frame, recorded)
    committed = {scale: rows for scale in _scales(settings.scale) if (rows := _committed(experiment, settings, scale))}
    for claim in claims:
        seen = [one for one in _seen(claim, grid, own, committed) if math.isfinite(one.difference.sd)]
        if not seen:
            without.append(claim)
            continue
        nearest = max(seen, key=lambda one: (-one.distance, one.difference.n))
        seeds = own.n_seeds(claim.group)
        sizes = grid.effect_sizes(claim, experiment)
        spread, pairs = nearest.difference.sd, nearest.difference.n
        found.append(ClaimPower(claim, sizes, seeds, spread, pairs, nearest.source, len(claims)))
    return found, without


def show(powers: list[ClaimPower], without: list[Claim], console: Console) -> None:
    """Prints the table of powers, with what its columns mean."""
    if powers:
        seeds = " and ".join(sorted({str(one.seeds) for one in powers}, key=int))
        console.print(
            f"\nThe number of seeds, {seeds}, is fixed before the runs; no claim is tested before all its runs have "
            "finished.\n"
            f"Power with {powers[0].n_claims} claims tested together (Holm), from the spread of pairs seen so far:",
            markup=False,
        )
        table = Table("", *_COLUMNS, box=box.SIMPLE_HEAD)
        for number, one in enumerate(powers, 1):
            console.print(f"  {number}  {_label(one.claim)} ({one.pairs} pairs, {one.source})", markup=False)
            table.add_row(
                str(number),
                f"{one.spread:.2g}",
                f"{one.smallest_shown:.2g}",
                f"± {one.half_width:.2g}",
                f"{one.sizes.expected:.3g}{'*' if one.sizes.paper is None else ''}",
                f"{one.power:.0%}",
                f"{one.power_of_equality:.0%}",
                _number(one.seeds_for(one.sizes.expected)),
                f"{_number(one.seeds_for(one.sizes.smallest))} ({one.sizes.smallest:g})",
            )
        console.print(table)
        console.print("; ".join(f"{name}: {meaning}" for name, meaning in _COLUMNS.items()) + ".", markup=False)
        fewest = min(one.pairs for one in powers)
        low, high = sd_factors(fewest)
        console.print(
            f"A spread of {fewest} pairs is uncertain: the true one may be {low:.2g} to {high:.2g} times as large (80% "
            "interval), and a number of seeds as the square of that.",
            markup=False,
        )
    if without:
        console.print(
            f"No power of {len(without)} claims, of which no two pairs have been seen: run a smaller scale first "
            f"({'; '.join(map(_label, without))})",
            markup=False,
        )


def _label(claim: Claim) -> str:
    return f"{claim.group}: {claim.row} - {claim.against}"


def _number(seeds: int | None) -> str:
    return f"{seeds:,}" if seeds is not None else f"> {MOST_SEEDS:,}"


def _scales(scale: Scale) -> list[Scale]:
    """The scale, then the smaller ones from the largest; smoke results predict nothing."""
    return [one for one in reversed(SCALES[: SCALES.index(scale) + 1]) if one != "smoke" or scale == "smoke"]


def _committed(experiment: Experiment, settings: GridSettings, scale: Scale) -> list[dict[str, str]]:
    path = experiment.result(settings.output_dir, f"{scale}_runs.csv")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


class _Seen(NamedTuple):
    source: str
    distance: int  # 0 at the planned scale, then 1 for each scale below
    difference: Estimate


def _seen(claim: Claim, grid: Grid, own: Results, committed: Mapping[Scale, list[dict[str, str]]]) -> Iterator[_Seen]:
    metric = grid.metric(claim.metric)
    if own.is_measured(metric):
        yield _Seen("finished runs", 0, own.difference(claim.group, claim.row, claim.against, metric))
    for scale, rows in committed.items():
        first, second = (_values(rows, claim.group, row, claim.metric) for row in (claim.row, claim.against))
        if seeds := first.keys() & second.keys():
            difference = mean_interval([first[seed] - second[seed] for seed in sorted(seeds)])
            yield _Seen(f"results at {scale}", SCALES.index(own.settings.scale) - SCALES.index(scale), difference)


def _values(rows: list[dict[str, str]], group: str, row: str, metric: str) -> dict[str, float]:
    """The metric by seed."""
    found: dict[str, float] = {}
    for cell in rows:
        if (cell.get("group"), cell.get("row")) == (group, row):
            try:
                found[cell["seed"]] = float(cell[metric])
            except (KeyError, TypeError, ValueError):  # not measured there
                continue
    return {seed: value for seed, value in found.items() if math.isfinite(value)}
