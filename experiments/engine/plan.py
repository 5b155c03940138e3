"""Plan of a grid, printed before anything is run: runs, tokens, time, disk and statistical power."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.engine import power_plan
from experiments.engine.experiment import Experiment
from experiments.engine.grid import GridSettings, declared
from experiments.engine.grid_records import FILE, GridRecords
from experiments.engine.grid_runs import overrides_of
from ssa.config import Config
from ssa.launch.pool import refused
from ssa.launch.run import Run
from ssa.model.config import ModelConfig
from ssa.progress import duration
from ssa.record.run_table import FoundRun
from ssa.record.runs import load
from ssa.text.tokenization import trained_entries

_VOCABULARY = 50_257  # of GPT-2, in place of a published tokenizer's, which is not read here
_BYTES = 4 * 3 * 2  # per parameter: float32 with AdamW's two moments, in two checkpoints
_START = 4.0  # seconds of a run before and after training, on two cores
_KIND = ["config.scale", "config.model.name", "config.model.size", "config.data.block_size"]  # decide the speed


def show(experiment: Experiment, settings: GridSettings, console: Console) -> None:
    grid = declared(experiment, settings)
    records = GridRecords.of(experiment, grid, settings)
    planned, taken = records.plan()
    missing = records.missing(planned, taken)
    mistakes = refused(missing)
    for reason, number in Counter(mistakes.values()).items():
        console.print(f"{number} runs are refused: {reason}", markup=False)
    if taken:
        console.print(f"{len(taken)} of {len(planned)} runs have a record, which counts as finished")
    unique = list({run.folder: run for run in planned.values() if run and not run.refusal}.values())
    waiting = [run for run in unique if run in missing and (settings.rerun or not run.is_finished())]
    table = Table("runs", "finished", "interrupted", "not started", "tokens to train", box=box.SIMPLE_HEAD)
    counts: dict[str, Counter[str]] = {}
    for run in unique:
        state = "finished" if run not in waiting else "interrupted" if run.tokens_done() else "new"
        count = counts.setdefault(run.group_label, Counter())
        count[state] += 1
        count["tokens"] += _tokens_left(run, settings.rerun) if run in waiting else 0
    for label, count in counts.items():
        states = [str(count[state]) for state in ("finished", "interrupted", "new")]
        table.add_row(label, *states, f"{count['tokens']:,}")
    console.print(table)
    # Runs that depend on others, in their stead from scratch: of the same size and number of tokens.
    unknown = [cell for cell, run in planned.items() if run is None]
    later = [Run(overrides_of(grid, settings, cell), cell.group) for cell in unknown if cell not in taken]
    if later:
        console.print(
            f"and {len(later)} runs that start from a pretrained model or wait for a search of learning rates, "
            f"{sum(run.tokens for run in later):,} tokens"
        )
    waiting += later
    tokens = sum(_tokens_left(run, settings.rerun) for run in waiting)
    frame = _known(settings, [record.run for record in taken.values()])
    seconds, how = _seconds(waiting, settings, frame)
    disk = sum(_parameters(run.config) * _BYTES for run in waiting)
    console.print(
        f"{len(waiting)} of {len(unique) + len(unknown)} runs to do, {tokens:,} tokens, about {duration(seconds)} with "
        f"jobs={settings.jobs} ({how}), {disk / 1e9:,.1f} GB of disk"
    )
    power_plan.show(*power_plan.claim_powers(experiment, grid, settings, planned, frame, taken), console)


def _known(settings: GridSettings, recorded: Sequence[FoundRun]) -> pd.DataFrame:
    """All runs so far."""
    folder = Path(settings.output_dir) / "experiments"
    if folder.is_dir() or recorded:
        return load(folder, checked=False, recorded=recorded)
    return pd.DataFrame(columns=["folder", "status", "damage"], dtype=str)


def _tokens_left(run: Run, rerun: bool) -> int:
    return run.tokens if rerun else run.tokens - run.tokens_done()


def _seconds(waiting: Sequence[Run], settings: GridSettings, frame: pd.DataFrame) -> tuple[float, str]:
    """Estimated duration of all runs, and what the estimate is based on.

    A run is as fast as finished ones of the same kind, else as its FLOPs at this machine's speed.
    """
    speeds: dict[tuple[object, ...], float] = {}  # tokens per second by kind
    here = ~frame["folder"].str.endswith(FILE)  # records may be of another machine
    finished = frame[here & (frame["status"] == "finished")]
    if len(finished):
        tokens_per_second = finished["tokens"] / finished["wall_seconds"]
        speeds = tokens_per_second.groupby([finished[key] for key in _KIND]).median().to_dict()
    estimated: set[tuple[object, ...]] = set()
    total = 0.0
    for run in waiting:
        kind = _kind(run.config)
        if kind not in speeds:
            speeds[kind] = _speed(run.config)
            estimated.add(kind)
        total += _tokens_left(run, settings.rerun) / speeds[kind] + (_START if kind in estimated else 0)
    how = (
        "estimated from FLOPs and a short timing on this machine, without evaluation"
        if estimated
        else "from finished runs"
    )
    return total / settings.jobs, how


def _kind(config: Config) -> tuple[object, ...]:
    return config.scale, config.model.name, config.model.size, config.data.block_size


def _parameters(config: Config) -> int:
    return _count(config.model, config.model.vocab_size or trained_entries(config.data.tokenizer) or _VOCABULARY)


@functools.cache
def _count(model: ModelConfig, vocab_size: int) -> int:
    import torch

    from ssa.model.transformer import Transformer

    with torch.device("meta"):
        return Transformer(model, vocab_size, None).count_parameters()["total"]


def _speed(config: Config) -> float:
    """Tokens per second of training on one thread: 6 FLOPs per parameter and token, and causal attention's."""
    model = config.model
    attention = 6 * model.n_layer * model.d_model * config.data.block_size
    return _flops_per_second() / (6 * _parameters(config) + attention)


@functools.cache
def _flops_per_second() -> float:
    """Measured in training steps of one layer, which take a fraction of a second."""
    import torch

    from ssa.model.transformer import Transformer

    torch.set_num_threads(1)
    layer = ModelConfig(name="gpt2", size="layer", n_layer=1, n_head=8, d_model=512)
    vocab_size, length, seconds = 2048, 256, 0.0
    model, tokens = Transformer(layer, vocab_size, 0), torch.zeros((1, length), dtype=torch.long)
    for _ in range(2):  # the first warms up
        began = time.perf_counter()
        model(tokens, tokens).mean().backward()
        seconds = time.perf_counter() - began
    return 6 * length * (_count(layer, vocab_size) + layer.d_model * length) / seconds
