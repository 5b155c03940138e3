"""What table 2 is told, and what was found in its cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from experiments.engine.experiment import TheorySettings
from experiments.engine.tuning import best_setting
from ssa.config import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from ssa.statistics import Estimate

Rate = Annotated[float, Field(ge=0, le=1)]
LEARNED, UNIFORM = ("vanilla", "value-selective"), ("uniform vanilla", "uniform value-selective")
METHODS = (*LEARNED, "SSA", *UNIFORM)


class DenoisingSettings(TheorySettings):
    """The default cell, and what is varied from it, one thing at a time."""

    dimension: PositiveInt = Field(description="m, of the signal")
    length: PositiveInt = Field(description="L, tokens of a context")
    noise_rate: Rate = Field(description="the probability that a token is noise")
    sigma: PositiveFloat = Field(description="standard deviation of a clean token about its signal, whose own is 1")
    noise_scale: PositiveFloat | None = Field(
        description="standard deviation of a noise token; null: that of a clean one, sqrt(1 + sigma^2)"
    )
    noise_rates: list[Rate] = Field(description="other cells: noise rates")
    lengths: list[PositiveInt] = Field(description="other cells: lengths")
    lr: PositiveFloat = Field(description="learning rate of Adam, at the start of a cosine")
    learning_rates: list[PositiveFloat] = Field(description="other cells: learning rates")
    steps: PositiveInt = Field(description="optimizer steps")
    batch: PositiveInt = Field(description="contexts of a step, all fresh")
    contexts: Annotated[int, Field(ge=100)] = Field(description="of the test of a seed, the same for all methods")


class DenoisingCell(NamedTuple):
    """What is varied."""

    noise_rate: float
    length: int
    lr: float


def methods(cell: DenoisingCell, default: DenoisingCell) -> tuple[str, ...]:
    """Trained in a cell: SSA too where the data are the default's.

    There is one query, the same in every context, so that its temperature is one number, which W_q could be times.
    """
    return METHODS if cell[:2] == default[:2] else (*LEARNED, *UNIFORM)


@dataclass
class DenoisingResults:
    """What all cells came to."""

    default: DenoisingCell
    cells: list[DenoisingCell]
    fixed: dict[tuple[float, int], dict[str, dict[str, float]]] = field(default_factory=dict)  # by rate and length
    learned: dict[tuple[DenoisingCell, str], dict[str, Any]] = field(default_factory=dict)

    def values(self, cell: DenoisingCell, method: str, quantity: str = "mse") -> list[float]:
        """One a seed; nan where there is none."""
        return [run[quantity] for run in self.learned[cell, method]["runs"]]

    def optimal(self, cell: DenoisingCell) -> dict[str, float]:
        """The Bayes estimator's risk."""
        return self.fixed[cell.noise_rate, cell.length]["Bayes"]

    def best(self, method: str) -> DenoisingCell:
        """The default cell at the learning rate with the least mean error."""
        same = [cell for cell in self.cells if cell[:2] == self.default[:2]]
        return best_setting({cell: self.values(cell, method) for cell in same})

    def gap(self, cell: DenoisingCell) -> float:
        """How much lower the limit of value-selective attention is than that of vanilla, in per cent of Bayes."""
        vanilla, value = (float(self.learned[cell, method]["limit"]) for method in LEARNED)
        return 100 * (vanilla - value) / self.optimal(cell)["closed"]


def difference(found: DenoisingResults, cell: DenoisingCell, method: str, baseline: str) -> Estimate:
    """Of the MSE, at equal seed."""
    from ssa.statistics import paired_interval

    return paired_interval(found.values(cell, method), found.values(cell, baseline))
