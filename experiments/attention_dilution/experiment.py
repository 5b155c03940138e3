"""Attention dilution: growth of attention entropy with the number of visible tokens, by temperature rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext
from experiments.engine.drawing import band
from experiments.engine.experiment import Rules, TrainingSettings
from experiments.engine.shared_runs import attention_of, run_of, weights_of
from ssa.record.run_files import read_summary
from ssa.statistics import mean_interval, paired_interval, shown
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

NAMES = {"none": "vanilla", "position": "position-aware", "token": "token-aware", "ssa": "both (SSA)"}
METRICS = {  # of the attention report, with their names in tables
    "attention_dilution": "slope",
    "attention_entropy": "entropy",
    "attention_entropy_normalized": "entropy / log n",
    "attention_spikiness": "spikiness",
    "query_key_tau_norm": "tau norm",
    "val_loss": "validation loss",
}
COMPARED = ("attention_dilution", "query_key_tau_norm", "val_loss")


class DilutionSettings(TrainingSettings):
    rules: Rules = Field(description="options of model/temperature, the baseline first")


def run(settings: DilutionSettings, context: ExperimentContext) -> None:
    """Trains each rule with each seed, and measures attention on the validation split."""
    cells = [(rule, seed) for rule in settings.rules for seed in range(settings.seeds)]
    folders = dict(zip(cells, context.train([run_of(settings, *cell) for cell in cells]), strict=True))
    jobs = {cell: (attention_of, {"run": str(run), "weights": weights_of(run)}) for cell, run in folders.items()}
    runs, positions = [], []
    for (rule, seed), attention in context.compute(jobs).items():
        folder = folders[rule, seed]
        numbers = {**attention["metrics"], "val_loss": read_summary(folder)["best/val/loss"]}
        runs.append({"rule": rule, "seed": seed, **{name: numbers[name] for name in METRICS}, "run": folder.name})
        positions += [{"rule": rule, "seed": seed, **row} for row in _binned(attention["positions"])]
    context.table("runs", runs)
    context.table("positions", positions)
    base, *others = settings.rules
    context.summary(
        "Attention dilution.",
        [_row(runs, rule, base) for rule in settings.rules],
        "Slope of entropy in log n; entropies and loss in nats; tau norm: operator norm of the query-key matrix times "
        "the query temperature, as in figure 2. Means over layers, heads and tokens; 95% intervals (Student's t, "
        f"{settings.seeds} seeds); differences to {NAMES.get(base, base)} at equal seed. scale={settings.scale}.",
    )
    _draw(context, positions, settings)
    slope = "attention_dilution"
    for rule in sorted(others, key=lambda rule: rule != "position"):  # the paper's remedy first
        name = NAMES.get(rule, rule)
        claim = f"with {name} temperatures attention dilutes less than in {NAMES.get(base, base)}"
        quantity = f"difference in the slope of entropy in log n, {name} - {NAMES.get(base, base)}"
        estimate = paired_interval(of_rule(runs, rule, slope), of_rule(runs, base, slope))
        context.conclude(Conclusion(claim, quantity, estimate, "lower"))


def of_rule(runs: list[dict[str, Any]], rule: str, name: str) -> list[float]:
    """A metric of the runs with a rule, one per seed."""
    return [run[name] for run in runs if run["rule"] == rule]


def _row(runs: list[dict[str, Any]], rule: str, base: str) -> dict[str, str]:
    row = {"temperature": NAMES.get(rule, rule)}
    for name, title in METRICS.items():
        values = of_rule(runs, rule, name)
        row[title] = shown(mean_interval(values))
        if name in COMPARED:
            difference = paired_interval(values, of_rule(runs, base, name))
            row[f"{title}: difference"] = "-" if rule == base else shown(difference)
    return row


def _binned(positions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over n = 1, 2, 3-4, 5-8, ..., including the mean n."""
    n = np.array([row["n"] for row in positions])
    bins = np.ceil(np.log2(n)).astype(int)
    names = ("n", *(name for name in positions[0] if name != "n"))
    columns = {name: np.array([row[name] for row in positions], float) for name in names}
    return [
        {name: float(column[bins == number].mean()) for name, column in columns.items()} for number in np.unique(bins)
    ]


def _draw(context: ExperimentContext, positions: list[dict[str, Any]], settings: DilutionSettings) -> None:
    base = settings.rules[0]
    n = [row["n"] for row in positions if (row["rule"], row["seed"]) == (base, 0)]
    entropy = {
        rule: np.array([row["entropy"] for row in positions if row["rule"] == rule]).reshape(settings.seeds, -1)
        for rule in settings.rules
    }  # (seeds, bins)
    caption = (
        "Attention entropy in nats against the number n of visible tokens, mean over layers, heads and tokens. "
        f"Top: by temperature rule. Bottom: difference to {NAMES.get(base, base)} at equal seed. "
        f"Bands: 95% intervals (Student's t, {settings.seeds} seeds)."
    )
    with context.figure("dilution", plot_style.COLUMN, 3.8, caption) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(n, np.log(n), color=plot_style.GRAY, linestyle=":", label=r"$\log n$: uniform")
        for rule in settings.rules:
            style = style_of(rule)
            look = style.line(label=NAMES.get(rule, rule), marker=style.marker, markersize=3.5)
            band(upper, n, entropy[rule].T.tolist(), alpha=0.15, **look)
            if rule != base:
                band(lower, n, (entropy[rule] - entropy[base]).T.tolist(), alpha=0.15, **look)
        lower.axhline(0, color=plot_style.GRAY, linewidth=0.8)
        for axes, label in ((upper, "entropy (nats)"), (lower, f"difference to {NAMES.get(base, base)} (nats)")):
            axes.set_xscale("log", base=2)
            axes.set_ylabel(label)
            axes.legend()
        lower.set_xlabel("visible tokens, $n$")
