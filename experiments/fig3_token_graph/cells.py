"""What figure 3 is told, and what was found in its cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from experiments.engine.experiment import TheorySettings
from experiments.engine.tuning import best_setting
from ssa.config import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from experiments.engine.job_cache import CachedJob
    from ssa.statistics import Estimate

Spread = Literal["equal", "narrow", "wide", "widest"]
DEGREES: dict[Spread, list[int]] = {  # of about equal geometric mean, 5.7, so of about equal floor
    "equal": [6],
    "narrow": [4, 8],
    "wide": [2, 4, 8, 16],
    "widest": [1, 2, 4, 8, 16, 32],
}
LABELS = {"vanilla": "vanilla", "ssa": "SSA", "wider": "vanilla, wider", "constant": "constant"}


class TokenGraphSettings(TheorySettings):
    """Of the default cell, which table 1 is of too."""

    vocabulary: Annotated[int, Field(ge=2)] = Field(description="nodes of the graph")
    spread: Spread = Field(description=f"out-degrees of the nodes, in equal shares: {DEGREES}")
    width: PositiveInt = Field(description="of the embeddings, and head_dim")
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        description="Adam's, at the start of a cosine; all of them are tried for each method"
    )
    steps: PositiveInt = Field(description="optimizer steps")
    sequences: PositiveInt = Field(description="in a minibatch, all fresh")
    length: PositiveInt = Field(description="predictions in a sequence")

    @model_validator(mode="after")
    def _nodes_have_neighbors(self) -> Self:
        _check("spread", self.spread, self.spread, self.vocabulary)
        return self


class TokenGraphGridSettings(TokenGraphSettings):
    """The default cell, and a grid in which one thing at a time is another."""

    grid_seeds: Annotated[int, Field(ge=2)] = Field(description="of the other cells")
    grid_learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(description="of the other cells")
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
    """One method at one rate in one cell, all seeds: of the default cell, but for the changes."""
    from ssa.theory.token_graph import learn, parameters

    spread: Spread = changes.pop("spread", settings.spread)
    same = settings.model_dump(include={"vocabulary", "width", "steps", "sequences", "length", "vectorized"})
    cell = {**same, "normalized": False, **changes, "degrees": DEGREES[spread], "lr": lr, "seeds": seeds}
    if method == "wider":  # vanilla, at the least width that has SSA's number of parameters
        method, vocabulary = "vanilla", cell["vocabulary"]
        while parameters(vocabulary, cell["width"], "vanilla") < parameters(
            vocabulary, changes.get("width", settings.width), "ssa"
        ):
            cell["width"] += 1
    return learn, {"method": method, **cell}


@dataclass
class TokenGraphCell:
    """What was found in one: for each method and learning rate, what `learn` returns."""

    label: str
    changes: dict[str, Any]
    rates: list[float]
    seeds: int
    methods: list[str]
    found: dict[tuple[str, float], dict[str, Any]] = field(default_factory=dict)
    widths: dict[str, int] = field(default_factory=dict)

    def values(self, method: str, lr: float, quantity: str) -> list[float]:
        """One a seed."""
        return [run[quantity] for run in self.found[method, lr]["runs"]]

    def best(self, method: str) -> float:
        """The rate of the least mean cross-entropy over the seeds."""
        return best_setting({lr: self.values(method, lr, "excess") for lr in self.rates})

    def difference(self, baseline: str, quantity: str, *, tuned: bool) -> Estimate:
        """SSA less a baseline, at equal seeds: both at the rate that is best for the baseline, or each at its own."""
        from ssa.statistics import paired_interval

        lr = self.best(baseline)
        rate = self.best("ssa") if tuned else lr
        return paired_interval(self.values("ssa", rate, quantity), self.values(baseline, lr, quantity))


def cells(settings: TokenGraphGridSettings) -> list[TokenGraphCell]:
    """The default one first."""
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
