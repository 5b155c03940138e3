"""Figure 4: convergence of vanilla and SSA at equal seed, from scratch and in fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext
from experiments.engine.drawing import band
from experiments.engine.experiment import Rules, TrainingSettings
from experiments.engine.shared_runs import exported_start, run_of
from ssa.config import PositiveFloat
from ssa.launch.run import Run
from ssa.record.run_files import read_rows
from ssa.report.convergence import Curve, speed_up
from ssa.statistics import bootstrap_interval, mean_interval, paired_interval, shown
from ssa.viz import plot_style
from ssa.viz.rule_style import style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ConvergenceSettings(TrainingSettings):
    rules: Annotated[Rules, Field(max_length=2)] = Field(description="options of model/temperature, baseline first")
    pretrained: str | None = Field(
        description="model to fine-tune: an id on the Hub or a folder; null: each seed's run from scratch, on the "
        "source code of Python's standard library"
    )
    finetune: list[str] = Field(description="comma-separated overrides of train.py for the fine-tuning runs")
    learning_rates: Annotated[list[PositiveFloat], Field(min_length=1)] = Field(
        description="learning rates of fine-tuning; the conclusion uses the first"
    )


class Regime(NamedTuple):
    """Curves to compare: by rule, one per seed."""

    name: str
    lr: float
    curves: dict[str, list[Curve]]

    def speed_ups(self, rules: list[str]) -> list[float]:
        base, other = (self.curves[rule] for rule in rules)
        return [speed_up(*pair) for pair in zip(base, other, strict=True)]

    def final(self, rule: str) -> list[float]:
        """The lowest validation loss of each seed, nats per token."""
        return [min(curve.losses) for curve in self.curves[rule]]


def run(settings: ConvergenceSettings, context: ExperimentContext) -> None:
    """Trains and fine-tunes each rule with each seed, and compares their validation curves."""
    regimes = _regimes(settings, context)
    context.table("curves", [row for regime in regimes for row in _points(regime)])
    (known,) = (row for row in context.experiment.references() if row["value"] != "-")
    runs, rows = [], []
    for regime in regimes:
        ratios = regime.speed_ups(settings.rules)
        final = {style_of(rule).name: regime.final(rule) for rule in settings.rules}
        for seed, ratio in enumerate(ratios):
            losses = {f"loss {name}": values[seed] for name, values in final.items()}
            runs.append({"regime": regime.name, "lr": regime.lr, "seed": seed, **losses, "speed-up": ratio})
        logs = [math.log(ratio) for ratio in ratios]
        base, other = final.values()
        rows.append(
            {
                "regime": regime.name,
                "learning rate": f"{regime.lr:g}",
                **{
                    f"perplexity, {name}": f"{math.exp(mean_interval(values).mean):.2f}"
                    for name, values in final.items()
                },
                "difference in loss": shown(paired_interval(other, base), 4),
                "speed-up (bootstrap)": shown(bootstrap_interval(logs).exponential(), 2),
                "speed-up (Student's t)": shown(mean_interval(logs).exponential(), 2),
                "paper": f"{known['value']} (grade {known['grade']})" if regime.name == "fine-tuning" else "-",
            }
        )
    context.table("runs", runs)
    context.summary(
        "Figure 4.",
        rows,
        "Speed-up: tokens that vanilla needs over tokens that SSA needs for the lowest validation loss both reach, "
        f"geometric mean; 95% intervals over {settings.seeds} seeds, by bootstrap (too narrow for few seeds) and "
        "Student's t. Perplexity: best validation, geometric mean. Loss in nats per token, SSA - vanilla, paired "
        f"at equal seed. The paper's value is for other models and text. scale={settings.scale}.",
    )
    _draw(context, settings, regimes)
    for regime in (regimes[1], regimes[0]):  # fine-tuning first: the paper's claim
        logs = [math.log(ratio) for ratio in regime.speed_ups(settings.rules)]
        claim = f"in {regime.name} SSA needs fewer tokens than vanilla for the same perplexity"
        quantity = f"speed-up at learning rate {regime.lr:g}, geometric mean"
        estimate = mean_interval(logs).exponential()  # a bootstrap interval is too narrow for few seeds
        context.conclude(Conclusion(claim, quantity, estimate, "higher", 1.0))


def _regimes(settings: ConvergenceSettings, context: ExperimentContext) -> list[Regime]:
    scratch = {
        rule: [run_of(settings, rule, seed, group="from scratch") for seed in range(settings.seeds)]
        for rule in settings.rules
    }
    folders = context.train([run for runs in scratch.values() for run in runs])
    if settings.pretrained is None:
        baselines = folders[: settings.seeds]
        starts = [[*exported_start(folder, settings.output_dir), "data=pysource"] for folder in baselines]
    else:
        starts = [[f"init_from={settings.pretrained}"]] * settings.seeds
    tuned = finetuning_runs(settings, starts)
    context.train([run for by_rule in tuned.values() for runs in by_rule.values() for run in runs])
    regimes = [Regime("training from scratch", scratch[settings.rules[0]][0].config.optim.lr, _curves(scratch))]
    return [*regimes, *(Regime("fine-tuning", lr, _curves(runs)) for lr, runs in tuned.items())]


def finetuning_runs(
    settings: ConvergenceSettings, starts: Sequence[Sequence[str]]
) -> dict[float, dict[str, list[Run]]]:
    """Runs of each learning rate and rule, one per seed, whose overrides in ``starts`` set what is fine-tuned."""

    def run_at(lr: float, rule: str, seed: int) -> Run:
        overrides = [*settings.finetune, *starts[seed], f"optim.lr={lr}"]
        return run_of(settings, rule, seed, overrides, "fine-tuning", f"learning rate {lr:g}")

    return {
        lr: {rule: [run_at(lr, rule, seed) for seed in range(settings.seeds)] for rule in settings.rules}
        for lr in settings.learning_rates
    }


def _curves(runs: dict[str, list[Run]]) -> dict[str, list[Curve]]:
    return {rule: [Curve.of(read_rows(run.folder)) for run in of_rule] for rule, of_rule in runs.items()}


def _points(regime: Regime) -> list[dict[str, Any]]:
    return [
        {"regime": regime.name, "lr": regime.lr, "rule": rule, "seed": seed, "tokens": tokens, "loss": loss}
        | {"perplexity": math.exp(loss)}
        for rule, curves in regime.curves.items()
        for seed, curve in enumerate(curves)
        for tokens, loss in zip(*curve, strict=True)
    ]


def _draw(context: ExperimentContext, settings: ConvergenceSettings, regimes: list[Regime]) -> None:
    shown_regimes = [regimes[1], regimes[0]]  # the conclusion's fine-tuning, and from scratch
    base, other = (style_of(rule).name for rule in settings.rules)
    caption = (
        f"Top: validation perplexity (log scale) against training tokens, {base} and {other} on the same batches; "
        f"thin: seeds; thick: geometric mean over {settings.seeds} seeds. Bottom: difference in validation loss, "
        f"{other} - {base}, at equal seed and tokens, nats per token: mean with its 95% interval (Student's t). Left: "
        f"fine-tuning at learning rate {regimes[1].lr:g}. Right: from scratch, without the first tenth of the tokens."
    )
    with context.figure("convergence", plot_style.COLUMN, 3.2, caption) as figure:
        panels = figure.subplots(2, 2, sharex="col", height_ratios=(3, 2))
        for (upper, lower), regime in zip(panels.T, shown_regimes, strict=True):
            _perplexities(upper, regime)
            _differences(lower, regime, settings.rules)
        panels[0, 0].set_ylabel("validation perplexity")
        panels[1, 0].set_ylabel(f"loss, {other} − {base}\n(nats per token)")
        figure.supxlabel("training tokens (millions)", fontsize="medium")


def _late(regime: Regime, rule: str) -> tuple[Any, Any]:
    """Millions of tokens, and losses of each seed (seeds, validations); from scratch without the first tenth."""
    tokens = np.array(regime.curves[rule][0].tokens) / 1e6
    losses = np.array([curve.losses for curve in regime.curves[rule]])
    late = tokens >= (0 if regime.name == "fine-tuning" else 0.1 * tokens[-1])
    return tokens[late], losses[:, late]


def _perplexities(axes: Axes, regime: Regime) -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    for rule in regime.curves:
        tokens, losses = _late(regime, rule)
        look = style_of(rule).line()
        axes.plot(tokens, np.exp(losses.T), **{**look, "label": None, "linewidth": 0.5, "alpha": 0.6})
        axes.plot(tokens, np.exp(losses.mean(0)), **look, linewidth=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.minorticks_off()
    axes.set_title(regime.name.removeprefix("training "))
    axes.legend()


def _differences(axes: Axes, regime: Regime, rules: list[str]) -> None:
    (tokens, bases), (_, others) = (_late(regime, rule) for rule in rules)
    axes.axhline(0, color=plot_style.GRAY, linewidth=0.8)
    band(axes, tokens.tolist(), (others - bases).T.tolist(), alpha=0.25, **style_of(rules[1]).line(label=None))
