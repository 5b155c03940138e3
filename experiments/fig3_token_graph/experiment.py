"""Figure 3: the transition matrix of a token graph as SSA and vanilla attention learn it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext, TableRow
from experiments.fig3_token_graph import figures
from experiments.fig3_token_graph.cells import LABELS, TokenGraphCell, TokenGraphGridSettings, all_cells, compute
from ssa.statistics import mean_interval, paired_interval, shown


def run(settings: TokenGraphGridSettings, context: ExperimentContext) -> None:
    found = all_cells(settings)
    compute(settings, context, found)
    paper = {row["method"]: row["value"] for row in context.experiment.references() if row["quantity"] == "excess"}
    context.table("runs", _runs(found))
    context.table("differences", _differences(found))
    context.summary(
        "Token graph: distance of the learned transition matrix from P*.",
        _summary(found, paper),
        f"Mean [95% interval] over {settings.named_seeds} (default) or {settings.grid_seeds} (others, named by their "
        "difference to the default); each method at its best learning rate. Cross-entropy less the graph's entropy, "
        "nats per token. L1: sum over tokens of |P - P*|, mean under pi. Less vanilla: paired at equal seed.",
    )
    figures.matrices(context, settings, found[0])
    figures.grid(context, settings, found)
    figures.rates(context, settings, found[0])
    context.conclude(*_conclusions(found[0]))


def _runs(found: list[TokenGraphCell]) -> Iterator[TableRow]:
    for cell in found:
        for (method, lr), value in cell.found.items():
            for run in value["runs"]:
                where = {"cell": cell.label, "method": LABELS[method], "width": cell.widths[method], "lr": lr}
                measured = {name: run[name] for name in ("floor", "excess", "l1", "l1_nodes", "norm")}
                yield {**where, "seed": run["seed"], "parameters": value["parameters"], **measured}


def _differences(found: list[TokenGraphCell]) -> Iterator[TableRow]:
    for cell in found:
        baselines = [method for method in cell.methods if method != "ssa"]
        for baseline, quantity, tuned in product(baselines, ("excess", "l1", "l1_nodes"), (False, True)):
            rates = "each its own best" if tuned else "the baseline's best"
            where = {"cell": cell.label, "baseline": LABELS[baseline], "quantity": quantity, "lr": rates}
            yield {**where, **cell.difference(baseline, quantity, tuned=tuned)._asdict()}


def _summary(found: list[TokenGraphCell], paper: Mapping[str, str]) -> Iterator[TableRow]:
    columns = {"cross-entropy": "excess", "L1": "l1", "norm of W": "norm"}
    for cell in found:
        base = cell.values("vanilla", cell.best("vanilla"), "excess")
        for method in cell.methods:
            lr = cell.best(method)
            less = "" if method == "vanilla" else shown(paired_interval(cell.values(method, lr, "excess"), base))
            yield {
                "cell": cell.label,
                "method": LABELS[method],
                "parameters": cell.found[method, lr]["parameters"],
                "lr": lr,
                "paper": paper.get(method, "-") if cell is found[0] else "",
                **{name: shown(mean_interval(cell.values(method, lr, key))) for name, key in columns.items()},
                "cross-entropy less vanilla": less,
            }


def _conclusions(cell: TokenGraphCell) -> Iterator[Conclusion]:
    more = cell.found["wider", cell.rates[0]]["parameters"] - cell.found["ssa", cell.rates[0]]["parameters"]
    wider = f"the wider vanilla's, which has {more} more parameters than SSA"
    equal = "vanilla's at equal width, data and steps"
    compared = (
        ("vanilla", "excess", False, equal),
        ("vanilla", "l1", False, equal),
        ("wider", "excess", False, wider),
        ("vanilla", "excess", True, equal),
        ("vanilla", "l1", True, equal),
        ("wider", "excess", True, wider),
        ("constant", "excess", True, "that of one learned temperature for all tokens"),
    )
    for baseline, quantity, tuned, other in compared:
        name, unit = (
            ("cross-entropy", "cross-entropy, nats per token") if quantity == "excess" else ("L1", "L1 under pi")
        )
        tuner = "the wider vanilla" if baseline == "wider" else LABELS[baseline]
        rates = (
            f"each at its own best learning rate, {cell.best('ssa'):g} and {cell.best(baseline):g}"
            if tuned
            else f"both at {tuner}'s best learning rate, {cell.best(baseline):g}"
        )
        yield Conclusion(
            f"SSA's transition matrix is closer to P* in {name} than {other}, {rates}",
            f"difference in {unit}, SSA - {LABELS[baseline]}",
            cell.difference(baseline, quantity, tuned=tuned),
            "lower",
        )
