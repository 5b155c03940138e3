"""The rows of table 2's tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments.engine.context import references
from experiments.table2_denoising.cells import LEARNED, METHODS, UNIFORM, DenoisingResults, difference
from ssa.statistics import mean_interval

if TYPE_CHECKING:
    from experiments.engine.context import TableRow

LIMIT_OF_NOISE = 4.0  # standard errors; by chance one of ten thousand is farther out


def runs(found: DenoisingResults) -> Iterator[TableRow]:
    """Every run."""
    for (cell, method), value in found.learned.items():
        for seed, one in enumerate(value["runs"]):
            measured = dict(one)
            measured["excess_error"] = measured.pop("error")
            yield {**cell._asdict(), "method": method, "seed": seed, "parameters": value["parameters"], **measured}


def fixed(found: DenoisingResults) -> Iterator[TableRow]:
    """Closed forms and Monte Carlo."""
    for (rate, length), estimators in found.fixed.items():
        for name, one in estimators.items():
            measured = {"closed_form": one["closed"], "monte_carlo": one["mean"], "standard_error": one["error"]}
            yield {"noise_rate": rate, "length": length, "estimator": name, **measured}


def differences(found: DenoisingResults) -> Iterator[TableRow]:
    """In every cell, so that no choice of a cell decides a comparison."""
    for cell in found.cells:
        for value, vanilla in ((LEARNED[1], LEARNED[0]), UNIFORM[::-1]):
            limits = [found.learned[cell, method]["limit"] for method in (value, vanilla)]
            compared = {"of": value, "less": vanilla, **difference(found, cell, value, vanilla)._asdict()}
            yield {**cell._asdict(), **compared, "difference_of_limits": limits[0] - limits[1]}


def checks(found: DenoisingResults) -> Iterator[TableRow]:
    """Numbers of standard errors, and what they may be."""
    distances = [
        abs(one["mean"] - one["closed"]) / one["error"]
        for estimators in found.fixed.values()
        for one in estimators.values()
    ]
    excesses = [
        excess / max(error, 1e-12)
        for cell, method in found.learned
        for excess, error in zip(found.values(cell, method, "excess"), found.values(cell, method, "error"), strict=True)
    ]
    yield {
        "check": "Monte Carlo agrees with the closed forms",
        "quantity": f"largest distance of {len(distances)}, standard errors",
        "value": max(distances),
        "passed": all(distance < LIMIT_OF_NOISE for distance in distances),
    }
    yield {
        "check": "no run beats Bayes beyond noise",
        "quantity": f"least excess of {len(excesses)}, standard errors",
        "value": min(excesses),
        "passed": all(excess > -LIMIT_OF_NOISE for excess in excesses),  # nan, of a run that diverged, is not
    }


def summary(found: DenoisingResults) -> Iterator[TableRow]:
    """The default cell, as the paper's table has it."""
    cell = found.default
    optimal = found.optimal(cell)
    paper = {row["method"]: row["value"] for row in references("table2_denoising")}
    names = {"naive": "naive averaging", "Bayes": "Bayes-optimal", "clean average": "average of the clean tokens"}
    for method in METHODS:
        error, excess = (mean_interval(found.values(cell, method, name)) for name in ("mse", "excess"))
        yield {
            "estimator": method.removeprefix("uniform "),
            "map": "uniform" if method in UNIFORM else "learned",
            "MSE": f"{error.mean:.5f} [{error.low:.5f}, {error.high:.5f}]",
            "excess over Bayes": f"{excess.mean / optimal['mean']:.2%}",
            "closed form": f"{found.learned[cell, method]['limit']:.5f}",
            "paper": paper.get(method, ""),
        }
    for name, one in found.fixed[cell.noise_rate, cell.length].items():
        yield {
            "estimator": names.get(name, "naive averaging, best shrunk"),
            "map": "-",
            "MSE": f"{one['mean']:.5f} +- {one['error']:.5f}",
            "excess over Bayes": f"{one['mean'] / optimal['mean'] - 1:.2%}",
            "closed form": f"{one['closed']:.5f}",
            "paper": paper.get(names.get(name, name), ""),
        }
