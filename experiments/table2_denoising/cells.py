"""Settings of table 2, and the results of its cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from experiments.engine.experiment import TheorySettings
from experiments.engine.tuning import best_setting
from ssa.config import PositiveFloat, PositiveInt
from ssa.statistics import Estimate, paired_interval

Rate = Annotated[float, Field(ge=0, le=1)]
LEARNED, UNIFORM = ("vanilla", "value-selective"), ("uniform vanilla", "uniform value-selective")
METHODS = (*LEARNED, "SSA", *UNIFORM)


class DenoisingSettings(TheorySettings):
    """The default cell and a grid of cells that differ from it in one setting."""

    dimension: PositiveInt = Field(description="m, dimension of the signal")
    length: PositiveInt = Field(description="L, tokens in a context")
    noise_rate: Rate = Field(description="probability that a token is noise")
    sigma: PositiveFloat = Field(description="standard deviation of a clean token around its signal, whose own is 1")
    noise_scale: PositiveFloat | None = Field(
        description="standard deviation of a noise token; null: that of a clean token, sqrt(1 + sigma^2)"
    )
    noise_rates: list[Rate] = Field(description="other cells: noise rates")
    lengths: list[PositiveInt] = Field(description="other cells: lengths")
    lr: PositiveFloat = Field(description="Adam's initial learning rate, with cosine decay")
    learning_rates: list[PositiveFloat] = Field(description="other cells: learning rates")
    steps: PositiveInt = Field(description="optimizer steps")
    batch: PositiveInt = Field(description="contexts per step, all fresh")
    contexts: Annotated[int, Field(ge=100)] = Field(description="test contexts of a seed, the same for all methods")


class DenoisingCell(NamedTuple):
    """A setting of the grid."""

    noise_rate: float
    length: int
    lr: float


def methods(cell: DenoisingCell, default: DenoisingCell) -> tuple[str, ...]:
    """The methods trained in a cell, with SSA only on the default data.

    The one query is the same in every context, so that its temperature is a constant that W_q could absorb.
    """
    return METHODS if cell[:2] == default[:2] else (*LEARNED, *UNIFORM)


@dataclass
class DenoisingResults:
    """Results of all cells.

    Attributes:
        fixed: results of the fixed estimators by noise rate and length.
        learned: results of the trained methods by cell and method.
    """

    default: DenoisingCell
    cells: list[DenoisingCell]
    fixed: dict[tuple[float, int], dict[str, dict[str, float]]] = field(default_factory=dict)
    learned: dict[tuple[DenoisingCell, str], dict[str, Any]] = field(default_factory=dict)

    def values(self, cell: DenoisingCell, method: str, quantity: str = "mse") -> list[float]:
        """One value per seed; nan where it is undefined."""
        return [run[quantity] for run in self.learned[cell, method]["runs"]]

    def optimal(self, cell: DenoisingCell) -> dict[str, float]:
        return self.fixed[cell.noise_rate, cell.length]["Bayes"]

    def best(self, method: str) -> DenoisingCell:
        """The default cell at a method's best learning rate."""
        same = [cell for cell in self.cells if cell[:2] == self.default[:2]]
        return best_setting({cell: self.values(cell, method) for cell in same})

    def gap(self, cell: DenoisingCell) -> float:
        """Limit of vanilla less that of value-selective attention, in percent of the Bayes risk."""
        vanilla, value = (float(self.learned[cell, method]["limit"]) for method in LEARNED)
        return 100 * (vanilla - value) / self.optimal(cell)["closed"]

    def difference(self, cell: DenoisingCell, method: str, baseline: str) -> Estimate:
        """Difference in MSE at equal seed."""
        return paired_interval(self.values(cell, method), self.values(cell, baseline))
