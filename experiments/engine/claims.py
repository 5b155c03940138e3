"""Claims of a grid, and the effect sizes that each is judged against."""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from experiments.engine.experiment import Experiment, find_experiment
from ssa.config import Section
from ssa.errors import UserError

Name = Annotated[str, Field(min_length=1)]


class PaperSize(Section):
    """Two of the paper's values, in the ``reference.csv`` of an experiment, whose difference is the claim's size."""

    quantity: Name = Field(description="quantity of both values")
    row: Name = Field(description="method of the first value")
    against: Name = Field(description="method of the second value")
    experiment: Name | None = Field(None, description="experiment with the reference.csv; null: this one")
    log_ratio: bool = Field(False, description="the values are perplexities, whose log ratio is in nats")


class Claim(Section):
    """Claim that a row's metric is lower (or higher) than another's in a group; the first is the main claim."""

    group: Name
    row: Name
    against: Name
    metric: Name
    expected: Literal["lower", "higher"] = "lower"
    paper: PaperSize | None = Field(None, description="size that the paper reports; null: the metric's `smallest`")

    @property
    def text(self) -> str:
        return f"in {self.group}, {self.row} has a {self.expected} {self.metric} than {self.against}"

    @property
    def quantity(self) -> str:
        return f"difference in {self.metric}, {self.row} - {self.against}"


class EffectSizes(NamedTuple):
    """Positive differences in the claimed direction, in the metric's unit.

    Attributes:
        smallest: the smallest difference of interest.
        paper: the difference that the paper reports, if any.
    """

    smallest: float
    paper: float | None = None

    @property
    def expected(self) -> float:
        """The size that a claim must reach: the paper's, else the smallest of interest."""
        return self.smallest if self.paper is None else self.paper

    @property
    def name(self) -> str:
        """Name of the expected size."""
        return "the smallest size of interest" if self.paper is None else "the paper's size"

    @property
    def margin(self) -> float:
        """Differences below it, either way, are practically none."""
        return min(self.smallest, self.expected)


def effect_sizes(claim: Claim, smallest: float, experiment: Experiment) -> EffectSizes:
    """The sizes for a claim of an experiment, whose metric has a smallest difference of interest.

    Raises:
        UserError: ``paper`` names no two known values, or they contradict the claim.
    """
    if claim.paper is None:
        return EffectSizes(smallest)
    source = find_experiment(claim.paper.experiment) if claim.paper.experiment else experiment
    paper = claim.paper
    row, against = (_value(source, paper, method, experiment) for method in (paper.row, paper.against))
    difference = math.log(row / against) if paper.log_ratio else row - against
    value = difference if claim.expected == "higher" else -difference
    if value <= 0:
        raise _error(experiment, f"{row:g} and {against:g} contradict a claim of a {claim.expected} {claim.metric}")
    return EffectSizes(smallest, value)


def _value(source: Experiment, paper: PaperSize, method: str, experiment: Experiment) -> float:
    where = {"quantity": paper.quantity, "method": method}
    for cell in source.references():
        if where.items() <= cell.items() and cell["value"] != "-":
            value = float(cell["value"])
            if value > 0 or not paper.log_ratio:
                return value
            raise _error(experiment, f"{value:g} has no logarithm")
    raise _error(experiment, f"{paper.quantity}, {method}: no value in {source.folder / 'reference.csv'}")


def _error(experiment: Experiment, problem: str) -> UserError:
    return UserError(f"{experiment.where}: grid: claims: paper: {problem}")
