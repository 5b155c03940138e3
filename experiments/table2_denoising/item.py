"""Table 2: denoising, by vanilla attention, by value-selective attention, by averages and by the Bayes estimator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field

from experiments.conclusion import Conclusion
from experiments.item import TheoryItemSettings
from ssa.model_config import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from experiments.parts import Part
    from experiments.study import Study
    from ssa.statistics import Estimate

Rate = Annotated[float, Field(ge=0, le=1)]
LEARNED, UNIFORM = ("vanilla", "value-selective"), ("uniform vanilla", "uniform value-selective")
METHODS = (*LEARNED, "SSA", *UNIFORM)


class Settings(TheoryItemSettings):
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


class Cell(NamedTuple):
    """What is varied."""

    noise_rate: float
    length: int
    lr: float


def methods(cell: Cell, default: Cell) -> tuple[str, ...]:
    """Trained in a cell: SSA too where the data are the default's.

    There is one query, the same in every context, so that its temperature is one number, which W_q could be times.
    """
    return METHODS if cell[:2] == default[:2] else (*LEARNED, *UNIFORM)


@dataclass
class Found:
    """What all cells came to."""

    default: Cell
    cells: list[Cell]
    fixed: dict[tuple[float, int], dict[str, dict[str, float]]] = field(default_factory=dict)  # by rate and length
    learned: dict[tuple[Cell, str], dict[str, Any]] = field(default_factory=dict)

    def values(self, cell: Cell, method: str, quantity: str = "mse") -> list[float]:
        """One a seed; nan where there is none."""
        return [float(run[quantity]) for run in self.learned[cell, method]["runs"]]  # JSON's nan is a text

    def optimal(self, cell: Cell) -> dict[str, float]:
        """The Bayes estimator's risk."""
        return self.fixed[cell.noise_rate, cell.length]["Bayes"]

    def best(self, method: str) -> Cell:
        """The default cell at the learning rate with the least mean error."""
        same = [cell for cell in self.cells if cell[:2] == self.default[:2]]
        return min(same, key=lambda cell: math.fsum(self.values(cell, method)))

    def gap(self, cell: Cell) -> float:
        """How much lower the limit of value-selective attention is than that of vanilla, in per cent of Bayes."""
        vanilla, value = (float(self.learned[cell, method]["limit"]) for method in LEARNED)
        return 100 * (vanilla - value) / self.optimal(cell)["closed"]


def run(settings: Settings, study: Study) -> None:
    """Trains every method in every cell."""
    from experiments.table2_denoising import figures, tables

    found = compute(settings, study)
    study.table("runs", list(tables.runs(found)))
    study.table("fixed", list(tables.fixed(found)))
    study.table("differences", list(tables.differences(found)))
    checked = list(tables.checks(found))
    study.table("checks", checked)
    failed = [row for row in checked if not row["passed"]]
    study.summary(
        f"Denoising: mean squared error per dimension, noise rate {settings.noise_rate:g}, L = {settings.length}.",
        list(tables.summary(found)),
        f"m = {settings.dimension}, sigma = {settings.sigma:g}. Trained: mean [95 % interval] over {settings.seeds} "
        f"seeds, each on {settings.contexts} test contexts, the same for every row; excess over Bayes: on the same "
        "contexts, in per cent. Not trained: Monte Carlo on all of them, +- one standard error. Closed form: the risk "
        "itself; of a trained row, the least that a marker-only map and temperature of its kind can have. "
        "Checks (no run beats Bayes beyond noise; Monte Carlo agrees with closed forms): "
        f"{'all passed' if not failed else '; '.join(row['check'] for row in failed) + ' FAILED'}. "
        "Paper: its numbers are not known to us.",
    )
    figures.draw(study, settings, found)
    for conclusion in _conclusions(found):
        study.conclude(conclusion)


def compute(settings: Settings, study: Study) -> Found:
    """The default cell first, then the others."""
    from experiments.table2_denoising.parts import fixed, learn

    rate, length, lr = default = Cell(settings.noise_rate, settings.length, settings.lr)
    cells = [
        default,
        *(Cell(value, length, lr) for value in settings.noise_rates),
        *(Cell(rate, value, lr) for value in settings.lengths),
        *(Cell(rate, length, value) for value in settings.learning_rates),
    ]
    found = Found(default, list(dict.fromkeys(cells)))
    same = settings.model_dump(include={"steps", "batch", "contexts", "seeds", "vectorised"})

    def task(noise_rate: float, length: int) -> dict[str, Any]:
        process = settings.model_dump(include={"dimension", "sigma", "noise_scale"})
        return {"noise_rate": noise_rate, "length": length, **process}

    tasks = list(dict.fromkeys(cell[:2] for cell in found.cells))
    models = [(cell, method) for cell in found.cells for method in methods(cell, default)]
    parts: list[Part] = [
        (fixed, {"task": task(*which), "contexts": settings.contexts, "seeds": settings.seeds}) for which in tasks
    ]
    parts += [(learn, {"task": task(*cell[:2]), "method": method, "lr": cell.lr, **same}) for cell, method in models]
    values = study.compute(parts)
    found.fixed.update(zip(tasks, values[: len(tasks)], strict=True))
    found.learned.update(zip(models, values[len(tasks) :], strict=True))
    return found


def difference(found: Found, cell: Cell, method: str, baseline: str) -> Estimate:
    """Of the MSE, at equal seed."""
    from ssa.statistics import paired_interval

    return paired_interval(found.values(cell, method), found.values(cell, baseline))


def _conclusions(found: Found) -> Iterator[Conclusion]:
    from ssa.statistics import paired_interval

    where = f"noise rate {found.default.noise_rate:g}, L = {found.default.length}"
    learned = "with a learned map, value-selective attention denoises better than vanilla attention"
    compared = (
        ("value-selective", "vanilla", f"{learned} ({where}, both at lr {found.default.lr:g})"),
        (
            "uniform value-selective",
            "uniform vanilla",
            "with the uniform map, value selection denoises better than none",
        ),
        (
            "vanilla",
            "uniform value-selective",
            "a learned map without temperatures denoises better than value selection on the uniform map",
        ),
        ("SSA", "vanilla", "with a learned map, temperatures on query and value denoise better than vanilla attention"),
    )
    for method, baseline, claim in compared:
        quantity = f"difference of the MSE per dimension, {method} - {baseline}"
        yield Conclusion(claim, quantity, difference(found, found.default, method, baseline), "lower")
    apart = max((cell for cell in found.cells if cell.lr == found.default.lr), key=found.gap)
    yield Conclusion(
        f"exploratory, as lengths were added after a trial: {learned} where its limit in closed form is lowest below "
        f"vanilla's, by {found.gap(apart):.3g} per cent of the Bayes risk (noise rate {apart.noise_rate:g}, "
        f"L = {apart.length})",
        "difference of the MSE per dimension, value-selective - vanilla",
        difference(found, apart, "value-selective", "vanilla"),
        "lower",
    )
    value, vanilla = (found.best(method) for method in ("value-selective", "vanilla"))
    yield Conclusion(
        f"{learned} ({where}, each at its own best learning rate, {value.lr:g} and {vanilla.lr:g})",
        "difference of the MSE per dimension, value-selective - vanilla",
        paired_interval(found.values(value, "value-selective"), found.values(vanilla, "vanilla")),
        "lower",
    )
