"""Figure 3: the transition matrix of a token graph, as SSA and as vanilla learn it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from experiments.engine.conclusion import Conclusion, shown
from experiments.fig3_token_graph.cells import LABELS, TokenGraphCell, TokenGraphGridSettings, cached_job, cells

if TYPE_CHECKING:
    from experiments.engine.context import ExperimentContext, TableRow


def run(settings: TokenGraphGridSettings, context: ExperimentContext) -> None:
    """Trains every method at every rate in every cell."""
    from experiments.fig3_token_graph import figures

    found = cells(settings)
    keys = [(cell, method, lr) for cell in found for method in cell.methods for lr in cell.rates]
    jobs = [cached_job(settings, method, lr, cell.seeds, **cell.changes) for cell, method, lr in keys]
    for (cell, method, lr), (_, arguments), value in zip(keys, jobs, context.compute(jobs), strict=True):
        cell.found[method, lr] = value
        cell.widths[method] = arguments["width"]
    context.table("runs", list(_runs(found)))
    context.table("differences", list(_differences(found)))
    context.summary(
        "Token graph: how far the learned transition matrix is from P*.",
        list(_summary(found)),
        f"Mean [95 % interval] over {settings.seeds} seeds (default) or {settings.grid_seeds} (other cells), which "
        "differ from the default in what they are called by; each method at its best learning rate of those tried. "
        "Cross-entropy less the graph's entropy, nats a token. L1: sum over tokens of |P - P*|, mean under pi. "
        "Less vanilla: paired at equal seed.",
    )
    figures.matrices(context, settings, found[0])
    figures.grid(context, settings, found)
    figures.rates(context, settings, found[0])
    for conclusion in _conclusions(found[0]):
        context.conclude(conclusion)


def _runs(found: list[TokenGraphCell]) -> Iterator[TableRow]:
    for cell in found:
        for (method, lr), value in cell.found.items():
            for seed, one in enumerate(value["runs"]):
                where = {"cell": cell.label, "method": LABELS[method], "width": cell.widths[method], "lr": lr}
                measured = {name: one[name] for name in ("floor", "excess", "l1", "l1_nodes", "norm")}
                yield {**where, "seed": seed, "parameters": value["parameters"], **measured}


def _differences(found: list[TokenGraphCell]) -> Iterator[TableRow]:
    for cell in found:
        for baseline in cell.methods:
            for quantity in ("excess", "l1", "l1_nodes") if baseline != "ssa" else ():
                for tuned in (False, True):
                    rates = "each its own best" if tuned else "the baseline's best"
                    where = {"cell": cell.label, "baseline": LABELS[baseline], "quantity": quantity, "lr": rates}
                    yield {**where, **cell.difference(baseline, quantity, tuned=tuned)._asdict()}


def _summary(found: list[TokenGraphCell]) -> Iterator[TableRow]:
    from experiments.engine.context import references
    from ssa.statistics import mean_interval, paired_interval

    paper = {row["method"]: row["value"] for row in references("fig3_token_graph") if row["quantity"] == "excess"}
    for cell in found:
        base = cell.values("vanilla", cell.best("vanilla"), "excess")
        for method in cell.methods:
            lr = cell.best(method)
            columns = {"cross-entropy": "excess", "L1": "l1", "norm of W": "norm"}
            means = {name: shown(mean_interval(cell.values(method, lr, key))) for name, key in columns.items()}
            less = "" if method == "vanilla" else shown(paired_interval(cell.values(method, lr, "excess"), base))
            yield {
                "cell": cell.label,
                "method": LABELS[method],
                "parameters": cell.found[method, lr]["parameters"],
                "lr": lr,
                "paper": paper.get(method, "-") if cell is found[0] else "",
                **means,
                "cross-entropy less vanilla": less,
            }


def _conclusions(cell: TokenGraphCell) -> Iterator[Conclusion]:
    more = cell.found["wider", cell.rates[0]]["parameters"] - cell.found["ssa", cell.rates[0]]["parameters"]
    wider = f"the wider vanilla's, which has {more} more parameters than SSA"
    closer = "SSA's transition matrix is closer to P* in"
    compared = (
        ("vanilla", "excess", False, "cross-entropy than vanilla's at equal width, data and steps"),
        ("vanilla", "l1", False, "L1 than vanilla's at equal width, data and steps"),
        ("wider", "excess", False, f"cross-entropy than {wider}"),
        ("vanilla", "excess", True, "cross-entropy than vanilla's at equal width, data and steps"),
        ("vanilla", "l1", True, "L1 than vanilla's at equal width, data and steps"),
        ("wider", "excess", True, f"cross-entropy than {wider}"),
        ("constant", "excess", True, "cross-entropy than that of one learned temperature for all tokens"),
    )
    for baseline, quantity, tuned, claim in compared:
        rates = (
            f"each at its own best learning rate, {cell.best('ssa'):g} and {cell.best(baseline):g}"
            if tuned
            else f"both at the learning rate that suits {LABELS[baseline]} best, {cell.best(baseline):g}"
        )
        unit = "cross-entropy, nats a token" if quantity == "excess" else "L1 under pi"
        measured = f"difference of the {unit}, SSA - {LABELS[baseline]}"
        estimate = cell.difference(baseline, quantity, tuned=tuned)
        yield Conclusion(f"{closer} {claim}, {rates}", measured, estimate, "lower")
