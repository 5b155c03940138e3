"""Settings of figure 3, and the results of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from experiments.engine.context import ExperimentContext
from experiments.engine.experiment import TheorySettings
from experiments.engine.job_cache import CachedJob
from experiments.engine.tuning import best_setting
from ssa.config import PositiveFloat, PositiveInt
from ssa.statistics import Estimate, paired_interval

Spread = Literal["equal", "narrow", "wide", "widest"]
DEGREES: dict[Spread, list[int]] = {  # about equal geometric means, 5.7, hence about equal entropy
    "equal": [6],
    "narrow": [4, 8],
    "wide": [2, 4, 8, 16],
    "widest": [1, 2, 4, 8, 16, 32],
}
LABELS = {"vanilla": "vanilla", "ssa": "SSA", "wider": "vanilla, wider", "constant": "constant"}


class TokenGraphSettings(TheorySettings):
    """The default cell, which table 1 uses too."""

    vocabulary: Annotated[int, Field(ge=2)] = Field(description="nodes of the graph")
    spread: Spread = Field(description=f"out-degrees of the nodes, in equal shares: {DEGREES}")
    width: PositiveInt = Field(description="width of the embeddings, and head_dim")
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        description="Adam's initial learning rates, with cosine decay; each method tries all"
    )
    steps: PositiveInt = Field(description="optimizer steps")
    sequences: PositiveInt = Field(description="sequences in a minibatch, all fresh")
    length: PositiveInt = Field(description="predictions in a sequence")

    @model_validator(mode="after")
    def _nodes_have_neighbors(self) -> Self:
        _check("spread", self.spread, self.spread, self.vocabulary)
        return self


class TokenGraphGridSettings(TokenGraphSettings):
    """The default cell and a grid of cells that differ from it in one setting."""

    grid_seeds: Annotated[int, Field(ge=2)] = Field(description="seeds of the other cells")
    grid_learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        description="learning rates of the other cells"
    )
    vocabularies: list[Annotated[int, Field(ge=2)]] = Field(description="other cells")
    spreads: list[Spread] = Field(description="other cells")
    widths: list[PositiveInt] = Field(description="other cells")
    budgets: list[PositiveInt] = Field(description="other cells: steps")
    minibatches: list[PositiveInt] = Field(description="other cells: sequences in a minibatch")
    normalized: bool = Field(description="another cell: embeddings divided by their root mean square")

    @model_validator(mode="after")
    def _nodes_have_neighbors_everywhere(self) -> Self:
        for vocabulary in self.vocabularies:
            _check("vocabularies", vocabulary, self.spread, vocabulary)
        for spread in self.spreads:
            _check("spreads", spread, spread, self.vocabulary)
        return self


def _check(key: str, value: object, spread: Spread, vocabulary: int) -> None:
    largest = max(DEGREES[spread])
    if largest >= vocabulary:
        reason = f"spread {spread} has nodes of {largest} neighbors among {vocabulary - 1} others"
        raise ValueError(f"{key}={value}: {reason}; valid: a vocabulary above {largest}")


def cached_job(settings: TokenGraphSettings, method: str, lr: float, seeds: int, **changes: Any) -> CachedJob:
    """One method at one learning rate with all seeds, in the default cell with ``changes``."""
    from ssa.theory.token_graph import learn, parameters

    spread: Spread = changes.pop("spread", settings.spread)
    same = settings.model_dump(
        include={"vocabulary", "width", "steps", "sequences", "length", "first_seed", "vectorized"}
    )
    cell = {**same, "normalized": False, **changes, "degrees": DEGREES[spread], "lr": lr, "seeds": seeds}
    if method == "wider":  # vanilla at the smallest width with at least SSA's number of parameters
        method, vocabulary = "vanilla", cell["vocabulary"]
        needed = parameters(vocabulary, cell["width"], "ssa")
        while parameters(vocabulary, cell["width"], "vanilla") < needed:
            cell["width"] += 1
    return learn, {"method": method, **cell}


@dataclass(eq=False)
class TokenGraphCell:
    """A cell and its results: what `ssa.theory.token_graph.learn` returns for each method and learning rate."""

    label: str
    changes: dict[str, Any]
    rates: list[float]
    seeds: int
    methods: list[str]
    found: dict[tuple[str, float], dict[str, Any]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def runs(self, method: str, lr: float) -> list[dict[str, Any]]:
        """One per seed."""
        found: list[dict[str, Any]] = self.found[method, lr]["runs"]
        return found

    def values(self, method: str, lr: float, quantity: str) -> list[float]:
        """One value per seed."""
        return [run[quantity] for run in self.runs(method, lr)]

    def best(self, method: str) -> float:
        """The learning rate with the lowest mean cross-entropy over seeds."""
        return best_setting({lr: self.values(method, lr, "excess") for lr in self.rates})

    def difference(self, baseline: str, quantity: str, *, tuned: bool) -> Estimate:
        """SSA less a baseline at equal seed: both at the baseline's best learning rate, or each at its own (tuned)."""
        lr = self.best(baseline)
        rate = self.best("ssa") if tuned else lr
        return paired_interval(self.values("ssa", rate, quantity), self.values(baseline, lr, quantity))


def compute(settings: TokenGraphSettings, context: ExperimentContext, cells: Sequence[TokenGraphCell]) -> None:
    jobs = {
        (cell, method, lr): cached_job(settings, method, lr, cell.seeds, **cell.changes)
        for cell in cells
        for method in cell.methods
        for lr in cell.rates
    }
    for key, value in context.compute(jobs).items():
        cell, method, lr = key
        cell.found[method, lr] = value
        cell.widths[method] = jobs[key][1]["width"]


def all_cells(settings: TokenGraphGridSettings) -> list[TokenGraphCell]:
    """All cells, the default one first."""
    grid: list[tuple[str, dict[str, Any]]] = [
        *((f"vocabulary {value}", {"vocabulary": value}) for value in settings.vocabularies),
        *((f"degrees {'/'.join(map(str, DEGREES[value]))}", {"spread": value}) for value in settings.spreads),
        *((f"width {value}", {"width": value}) for value in settings.widths),
        *((f"{value} steps", {"steps": value}) for value in settings.budgets),
        *((f"{value} sequences a step", {"sequences": value}) for value in settings.minibatches),
        *([("embeddings normalized", {"normalized": True})] if settings.normalized else []),
    ]
    methods = ["vanilla", "ssa", "wider"]
    default = TokenGraphCell("default", {}, settings.learning_rates, settings.seeds, [*methods, "constant"])
    rates, seeds = settings.grid_learning_rates, settings.grid_seeds
    return [default, *(TokenGraphCell(label, changes, rates, seeds, methods) for label, changes in grid)]
