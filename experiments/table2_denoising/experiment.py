"""Table 2: denoising by vanilla and value-selective attention, by averaging and by the Bayes estimator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext
from experiments.engine.job_cache import CachedJob
from experiments.table2_denoising import figures, tables
from experiments.table2_denoising.cells import DenoisingCell, DenoisingResults, DenoisingSettings, methods
from ssa.statistics import paired_interval


def run(settings: DenoisingSettings, context: ExperimentContext) -> None:
    found = compute(settings, context)
    paper = {row["method"]: row["value"] for row in context.experiment.references()}
    context.table("runs", tables.runs(found))
    context.table("fixed", tables.fixed(found))
    context.table("differences", tables.differences(found))
    checked = list(tables.checks(found))
    context.table("checks", checked)
    failed = [row for row in checked if not row["passed"]]
    context.summary(
        f"Denoising: mean squared error per dimension, noise rate {settings.noise_rate:g}, L = {settings.length}.",
        tables.summary(found, paper),
        f"m = {settings.dimension}, sigma = {settings.sigma:g}. Trained: mean [95% interval] over "
        f"{settings.named_seeds}, each on {settings.contexts} test contexts, the same for every row; excess over "
        "Bayes: on the same contexts. Not trained: Monte Carlo on all of them, +- one standard error. Closed form: "
        "exact risk; for trained rows, the lowest risk of a map and temperature of their kind that use only the "
        "marker. Checks (no run beats Bayes beyond noise; Monte Carlo agrees with closed forms): "
        f"{'all passed' if not failed else '; '.join(row['check'] for row in failed) + ' FAILED'}.",
    )
    figures.draw(context, settings, found)
    context.conclude(*_conclusions(found))


def compute(settings: DenoisingSettings, context: ExperimentContext) -> DenoisingResults:
    """Computes all cells, the default one first."""
    from experiments.table2_denoising.estimators import fixed, learn

    rate, length, lr = default = DenoisingCell(settings.noise_rate, settings.length, settings.lr)
    cells = [
        default,
        *(DenoisingCell(value, length, lr) for value in settings.noise_rates),
        *(DenoisingCell(rate, value, lr) for value in settings.lengths),
        *(DenoisingCell(rate, length, value) for value in settings.learning_rates),
    ]
    found = DenoisingResults(default, list(dict.fromkeys(cells)))
    same = settings.model_dump(include={"steps", "batch", "contexts", "seeds", "first_seed", "vectorized"})

    def task(noise_rate: float, length: int) -> dict[str, Any]:
        process = settings.model_dump(include={"dimension", "sigma", "noise_scale"})
        return {"noise_rate": noise_rate, "length": length, **process}

    jobs: dict[Any, CachedJob] = {}
    for rate, length, _ in found.cells:
        jobs[rate, length] = (
            fixed,
            {**settings.model_dump(include={"contexts", "seeds", "first_seed"}), "task": task(rate, length)},
        )
    for cell in found.cells:
        for method in methods(cell, default):
            jobs[cell, method] = learn, {"task": task(*cell[:2]), "method": method, "lr": cell.lr, **same}
    values = context.compute(jobs)
    found.fixed = {key: value for key, value in values.items() if jobs[key][0] is fixed}
    found.learned = {key: value for key, value in values.items() if jobs[key][0] is learn}
    return found


def _conclusions(found: DenoisingResults) -> Iterator[Conclusion]:
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
        quantity = f"difference in MSE per dimension, {method} - {baseline}"
        yield Conclusion(claim, quantity, found.difference(found.default, method, baseline), "lower")
    widest = max((cell for cell in found.cells if cell.lr == found.default.lr), key=found.gap)
    yield Conclusion(
        f"exploratory, as lengths were added after a trial: {learned} where its limit in closed form is lowest below "
        f"vanilla's, by {found.gap(widest):.3g} percent of the Bayes risk (noise rate {widest.noise_rate:g}, "
        f"L = {widest.length})",
        "difference in MSE per dimension, value-selective - vanilla",
        found.difference(widest, "value-selective", "vanilla"),
        "lower",
    )
    value, vanilla = (found.best(method) for method in ("value-selective", "vanilla"))
    yield Conclusion(
        f"{learned} ({where}, each at its own best learning rate, {value.lr:g} and {vanilla.lr:g})",
        "difference in MSE per dimension, value-selective - vanilla",
        paired_interval(found.values(value, "value-selective"), found.values(vanilla, "vanilla")),
        "lower",
    )
