"""Figure 1: a text shaded by the learned temperature of each token, from any checkpoint."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext
from experiments.engine.experiment import TrainingSettings
from experiments.engine.shared_runs import run_of, weights_of
from ssa.config import Config
from ssa.errors import UserError
from ssa.model.config import Projection
from ssa.record.run_model import load_run, load_run_config, with_own_tokenizer
from ssa.statistics import jackknife_interval, mean_interval, shown
from ssa.viz import plot_style
from ssa.viz.temperature_map import TemperatureView, check_choice, over
from ssa.viz.temperature_map import shown as glyphs
from ssa.viz.temperature_map_files import write_html, write_picture

Array = npt.NDArray[Any]
Text = Annotated[str, Field(min_length=1)]
Index = Annotated[int, Field(ge=0)]
_COLUMNS = 60  # tokens that fit in a figure


class TemperatureMapSettings(TrainingSettings):
    text: Text = Field(description="text to shade, preceded by an end-of-text token as in training")
    of: Projection = Field(description="which temperature to show")
    run: Text | None = Field(description="folder of a run to show; null: train one run per seed")
    rule: str = Field(description="model/temperature of the trained runs")
    layer: Index | None = Field(description="layer, counted from 0; null: mean over all")
    head: Index | None = Field(description="head, counted from 0; null: mean over all")


def run(settings: TemperatureMapSettings, context: ExperimentContext) -> None:
    """Shades the text by the given run, or by one trained run per seed."""
    chosen = (settings.of, settings.layer, settings.head)
    if settings.run is not None:
        folders = [Path(settings.run)]
        check_choice(load_run_config(settings.run).model, *chosen)
    else:
        runs = [run_of(settings, settings.rule, seed) for seed in range(settings.seeds)]
        check_choice(runs[0].config.model, *chosen)
        folders = context.train(runs)
    configs = [load_run_config(folder) for folder in folders]
    asked = {"text": settings.text, "of": settings.of, "counted": len(folders) > 1}
    jobs = {run: (temperatures_of, {"run": str(run), "weights": weights_of(run), **asked}) for run in folders}
    found = list(context.compute(jobs).values())
    values = [np.array(one["values"]) for one in found]  # each (L, H, T)
    pieces = found[0]["pieces"]
    rows = [row for config, of_run in zip(configs, values, strict=True) for row in _heads(config, of_run)]
    context.table("runs", rows)
    _shade(context, settings, configs[0], pieces, values[0])
    _draw_heads(context, settings, configs[0], pieces, values[0])
    tokens = np.stack([of_run.mean((0, 1)) for of_run in values])  # (seeds, T)
    context.table("tokens", [_token(number, piece, tokens[:, number]) for number, piece in enumerate(pieces)])
    if len(folders) > 1:
        _compare(context, settings, tokens, [one["log_counts"] for one in found])


def temperatures_of(run: str, weights: str, text: str, of: str, counted: bool) -> dict[str, Any]:
    """The tokens of a text and their temperatures in a run.

    Args:
        run, weights: the run folder and a hash of its weights.
        text: at most ``data.block_size`` tokens of the run.
        of: query, key, value or output.
        counted: whether to count the tokens in the training text, which must be available.

    Returns:
        ``pieces``: texts of the T tokens, the first an end-of-text; ``values``: (L, H, T), nested; and if counted,
        ``log_counts``: log(1 + count in the training text), (T,).

    Raises:
        UserError: the text is too long.
    """
    from ssa.text.token_cache import prepare
    from ssa.viz.temperature_map import all_temperatures, token_pieces

    config, model, tokenizer = load_run(run)
    ids = [tokenizer.end_of_text, *tokenizer.encode_batch([text])[0]]
    if len(ids) > config.data.block_size:
        raise UserError(
            f"text: {len(ids):,} tokens with the end-of-text before it, but the run was trained on "
            f"data.block_size={config.data.block_size} at once; valid: a shorter text"
        )
    found = {"pieces": token_pieces(tokenizer.decode, ids), "values": all_temperatures(model, ids, of).tolist()}
    if counted:
        counts = prepare(with_own_tokenizer(config.data, run)).split("train").token_counts(tokenizer.vocab_size)
        found["log_counts"] = np.log1p(counts[ids]).tolist()
    return found


def _heads(config: Config, values: Array) -> list[dict[str, Any]]:
    """One row per layer and head of a run."""
    layers, heads, _ = values.shape
    names = {"mean": values.mean(-1), "sd over tokens": values.std(-1), "min": values.min(-1), "max": values.max(-1)}
    return [
        {"seed": config.seed, "layer": layer, "head": head}
        | {name: float(numbers[layer, head]) for name, numbers in names.items()}
        for layer in range(layers)
        for head in range(heads)
    ]


def _token(number: int, piece: str, temperatures: Array) -> dict[str, Any]:
    estimate = mean_interval(temperatures.tolist())
    return {"token": number, "text": piece, "mean": estimate.mean, "low": estimate.low, "high": estimate.high}


def _shade(
    context: ExperimentContext, settings: TemperatureMapSettings, config: Config, pieces: list[str], values: Array
) -> None:
    """The text as HTML and as pictures; the page also has every layer and head, those on one color scale."""

    def view(layer: int | None, head: int | None) -> TemperatureView:
        chosen = values[slice(None) if layer is None else [layer]][:, slice(None) if head is None else [head]]
        words = f"{over(config.model, settings.of, layer, head)}; {config.run_id}, scale={settings.scale}"
        return TemperatureView(pieces, chosen.mean((0, 1)).tolist(), settings.of, words)

    layers, heads, _ = values.shape
    each = [view(layer, None) for layer in range(layers)]
    each += [view(layer, head) for layer in range(layers) for head in range(heads)]
    reach = max(one.reach for one in each)
    main = view(settings.layer, settings.head)
    write_html(main, context.path("map.html"), [replace(one, min_reach=reach) for one in each])
    for kind in plot_style.FORMATS:
        write_picture(main, context.path(f"map.{kind}"), explained=False)
    context.text("map.txt", "{}: {}. {}\n".format(*main.legend))


def _draw_heads(
    context: ExperimentContext, settings: TemperatureMapSettings, config: Config, pieces: list[str], values: Array
) -> None:
    layers, heads, length = values.shape
    caption = (
        f"Inverse {settings.of} temperature of each token (columns) in each layer and head (rows), {config.run_id}. "
        "White: 1, as in vanilla attention. Blue: smaller. Red: larger"
        f"{', a spikier attention map' if settings.of == 'query' else ''}."
    )
    names = [f"layer {layer}, head {head}" for layer in range(layers) for head in range(heads)]
    columns = [glyphs(piece).strip() for piece in pieces[:_COLUMNS]]
    with context.figure("heads", plot_style.PAGE, 1.3 + 0.13 * len(names), caption) as figure:
        axes = figure.add_subplot()
        rows = values.reshape(-1, length)[:, :_COLUMNS]
        plot_style.heat_map(axes, rows, rows=names, columns=columns, label=r"temperature $\tau$", neutral=1)
        axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=6)
        axes.tick_params(axis="y", labelsize=6)


def _compare(
    context: ExperimentContext, settings: TemperatureMapSettings, tokens: Array, log_counts: list[list[float]]
) -> None:
    """Agreement of seeds on (seeds, T) temperatures, without the first token, an end-of-text."""
    from scipy.stats import spearmanr

    tokens = tokens[:, 1:]
    own = _without_position(tokens)

    def agreement(seeds: list[int]) -> float:
        pairs = [(own[one], own[other]) for one, other in itertools.combinations(seeds, 2)]
        return float(np.mean([spearmanr(*pair).statistic for pair in pairs]))

    agree = jackknife_interval(agreement, len(own))
    counts = [float(spearmanr(row, of[1:]).statistic) for row, of in zip(own, log_counts, strict=True)]
    estimates = {
        "mean temperature": mean_interval(tokens.mean(1).tolist()),
        "sd over tokens": mean_interval(tokens.std(1).tolist()),
        "sd over tokens without the fit in log n": mean_interval(own.std(1).tolist()),
        "rank correlation of two seeds": agree,
        "rank correlation with the token's log frequency": mean_interval(counts),
    }
    context.summary(
        "Figure 1.",
        [{"quantity": name, "mean": shown(estimate)} for name, estimate in estimates.items()],
        f"Inverse {settings.of} temperatures, means over layers and heads, for a text of {own.shape[1]} tokens; "
        f"95% intervals (Student's t, {len(own)} seeds). Spearman correlations over tokens, after subtracting a linear "
        f"fit in log n. scale={settings.scale}.",
    )
    claim = "seeds agree on which tokens of the text get the larger temperatures, beyond a line in log n"
    quantity = "Spearman correlation over tokens, mean over pairs of seeds, jackknife over seeds"
    context.conclude(Conclusion(claim, quantity, agree, "higher"))


def _without_position(tokens: Array) -> Array:
    """(seeds, T) less the best linear fit in log n, the form of the position-aware term; n starts at 2."""
    log_n = np.log(np.arange(2, tokens.shape[1] + 2))
    design = np.stack([np.ones_like(log_n), log_n], axis=1)  # (T, 2)
    coefficients = np.linalg.lstsq(design, tokens.T, rcond=None)[0]
    return np.asarray(tokens - (design @ coefficients).T)
