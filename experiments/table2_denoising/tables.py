"""Rows of table 2's result files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from experiments.engine.context import TableRow
from experiments.table2_denoising.cells import LEARNED, METHODS, UNIFORM, DenoisingResults
from ssa.statistics import mean_interval

NOISE_LIMIT = 4.0  # standard errors; exceeded by chance once in 16,000


def runs(found: DenoisingResults) -> Iterator[TableRow]:
    for (cell, method), value in found.learned.items():
        for run in value["runs"]:
            measured = dict(run)
            measured["excess_error"] = measured.pop("error")
            seed, parameters = measured.pop("seed"), value["parameters"]
            yield {**cell._asdict(), "method": method, "seed": seed, "parameters": parameters, **measured}


def fixed(found: DenoisingResults) -> Iterator[TableRow]:
    for (rate, length), estimators in found.fixed.items():
        for name, one in estimators.items():
            measured = {"closed_form": one["closed"], "monte_carlo": one["mean"], "standard_error": one["error"]}
            yield {"noise_rate": rate, "length": length, "estimator": name, **measured}


def differences(found: DenoisingResults) -> Iterator[TableRow]:
    """Value-selective less vanilla in every cell, so that no choice of a cell decides a comparison."""
    for cell in found.cells:
        for value, vanilla in ((LEARNED[1], LEARNED[0]), UNIFORM[::-1]):
            limits = [found.learned[cell, method]["limit"] for method in (value, vanilla)]
            compared = {"of": value, "less": vanilla, **found.difference(cell, value, vanilla)._asdict()}
            yield {**cell._asdict(), **compared, "difference_of_limits": limits[0] - limits[1]}


def checks(found: DenoisingResults) -> Iterator[TableRow]:
    """Checks of the simulation, in standard errors."""
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
        "passed": all(distance < NOISE_LIMIT for distance in distances),
    }
    yield {
        "check": "no run beats Bayes beyond noise",
        "quantity": f"least excess of {len(excesses)}, standard errors",
        "value": min(excesses),
        "passed": all(excess > -NOISE_LIMIT for excess in excesses),  # false for nan, from a run that diverged
    }


def summary(found: DenoisingResults, paper: Mapping[str, str]) -> Iterator[TableRow]:
    """The default cell, with the paper's value of each method."""
    cell = found.default
    optimal = found.optimal(cell)
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
