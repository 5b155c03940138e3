"""Design of grids: one start for all rows and seeds, searches of learning rates, and temperatures that can move."""

from __future__ import annotations

import csv
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from grid_experiments import TINY, make_experiment, use
from run_folders import FAILED, write

from experiments.__main__ import main
from experiments.engine.design import RESERVED_SEED, Rates, turns_on_rate
from experiments.engine.experiment import Experiment, find_experiment
from experiments.engine.grid import GridSettings, declared
from experiments.engine.grid_runs import GridCell, candidates, chosen, losses, overrides_of, reported, runs, seeds
from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.launch.run import Run
from ssa.model.attention_stats import attention_statistics
from ssa.model.temperature_reach import KEYS, temperature_reach
from ssa.model.temperature_rules import SharedProjection
from ssa.model.transformer import Transformer
from ssa.record.run_files import read_summary
from ssa.training.optim import lr_factor

TUNED = [
    "ablation_parameters",
    "ablation_qkv",
    "ablation_strategies",
    "ablation_token_position",
    "long_context",
    "noisy_text",
    "table3_main",
]
ROWS = [
    {"name": "vanilla", "overrides": ["model/temperature=none"]},
    {"name": "SSA", "overrides": ["model/temperature=ssa"]},
]


def settings_of(name: str, scale: str) -> tuple[Experiment, GridSettings]:
    experiment = find_experiment(name)
    settings = GridSettings.model_validate({**experiment.values(scale), "scale": scale})
    return experiment, settings


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Declared designs


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("scale", ["laptop", "overnight"])
def test_every_row_searches_the_same_rates(name: str, scale: str) -> None:
    experiment, settings = settings_of(name, scale)
    grid = declared(experiment)
    for group in (group for group in grid.groups if scale in group.at):
        found = {row.name: candidates(grid, group, row, settings) for row in grid.rows}
        assert len({frozenset(rates.lr for rates in of_row) for of_row in found.values()}) == 1
        learned = {tuple(of_row) for of_row in found.values() if of_row and of_row[0].multiplier is not None}
        assert len(learned) <= 1
        if group.start:
            assert learned
            assert len(found["vanilla"]) > 1


def test_seeds_at_overnight() -> None:
    experiment, settings = settings_of("table3_main", "overnight")
    numbers = {group.name: len(seeds(group, settings)) for group in declared(experiment).groups}
    assert numbers["GPT-2, fine-tuning"] == 12
    assert numbers["GPT-2, pre-training"] == 5
    few = settings.model_copy(update={"seeds": 2})
    assert {len(seeds(group, few)) for group in declared(experiment).groups} == {2}


@pytest.mark.slow
def test_pretraining_at_overnight_is_long_enough() -> None:
    experiment, settings = settings_of("table3_main", "overnight")
    models = [run for cell, run in runs(declared(experiment), settings).items() if cell.group == "pretraining"]
    assert len(models) == 3
    assert all(run and run.tokens >= 2e6 and run.config.seed == RESERVED_SEED for run in models)


@pytest.mark.parametrize(("scale", "every_rate"), [("laptop", False), ("overnight", True), ("gpu", False)])
def test_temperatures_can_move_in_fine_tuning(scale: str, every_rate: bool) -> None:
    """AdamW moves a parameter by about its learning rate a step: position terms to 0.3, token terms to 0.3."""
    experiment, settings = settings_of("ablation_token_position", scale)
    grid = declared(experiment)
    (group,) = (group for group in grid.groups if group.name == "GPT-2")
    for row in grid.rows[1:]:
        tried = candidates(grid, group, row, settings)
        fastest = [rates for rates in tried if rates.multiplier == max(rates.multiplier or 0 for rates in tried)]
        for rates in fastest if every_rate else fastest[-1:]:
            config = configured(*overrides_of(grid, settings, GridCell(group.name, row.name, 0), (), rates))
            assert min(reach(config)) >= 0.3, (row.name, rates)


def reach(config: Config) -> list[float]:
    """The largest position term at 1,024 keys, and the largest token term, that the steps allow."""
    optim, steps = config.optim, config.trainer.steps
    shift = optim.lr * optim.temperature_lr_multiplier * sum(lr_factor(step, optim, steps) for step in range(steps))
    model = Transformer(replace(config.model, n_layer=1), 64, 0)
    found = []
    for temperature in model.first_temperatures().values():
        position = temperature.largest_position_term(shift, KEYS)
        found += [] if position is None else [position]
    for term in (module for module in model.modules() if isinstance(module, SharedProjection)):

        def align(module: SharedProjection, inputs: tuple[Any, ...]) -> None:
            with torch.no_grad():
                module.weight.copy_(shift * inputs[0][0, -1].sign())

        term.register_forward_pre_hook(align)
    with temperature_reach(model) as largest:
        attention_statistics(model.eval(), torch.arange(32)[None])
    return [*found, *([largest["temperature_token"]] if largest["temperature_token"] else [])]


def test_rates_of_a_search_cannot_be_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train = "train=scale=laptop,optim.temperature_lr_multiplier=4"
    assert main(["ablation_qkv", "scale=laptop", train, "plan=true", f"output_dir={tmp_path}"]) == 2
    said = "error: train=optim.temperature_lr_multiplier=4: the searches of learning rates set optim.temperature_lr"
    assert capsys.readouterr().err.startswith(said)


# Selection


def a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, GridSettings]:
    search = {"smoke": {"lr": [1e-3, 3e-3], "multiplier": [3]}}
    group = {"name": "GPT-2", "overrides": ["model=gpt2"], "search": search}
    (tmp_path / "text.txt").write_text("text")
    make_experiment(tmp_path / "grids", tmp_path / "text.txt", groups=[group], rows=ROWS)
    use(tmp_path / "grids", monkeypatch)
    experiment = Experiment("tiny")
    values = {**experiment.values("smoke"), "scale": "smoke", "output_dir": f"{tmp_path}/out"}
    return declared(experiment), GridSettings.model_validate(values)


def test_rows_wait_for_their_own_search_and_use_its_best_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, settings = a_search(tmp_path, monkeypatch)
    planned = runs(grid, settings)
    assert [cell.rates for cell in planned if cell.row == "vanilla" and cell.rates] == [
        Rates(1e-3, None),
        Rates(3e-3, None),
    ]
    assert all(run is None for run in reported(planned).values())
    assert {cell.seed for cell in planned if cell.rates} == {RESERVED_SEED}
    number = random.Random(1)
    for cell, run in planned.items():
        if run and cell.row == "vanilla":
            write(run.folder, run.config, number)
    planned = runs(grid, settings)
    found = losses(planned, "GPT-2", "vanilla")
    best = min(found, key=found.__getitem__)
    assert chosen(planned, "GPT-2", "vanilla") == best
    assert chosen(planned, "GPT-2", "SSA") is None
    for cell, run in reported(planned).items():
        assert (run is None) == (cell.row == "SSA")
        assert run is None or run.config.optim.lr == best.lr


def test_failed_run_of_a_search_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, settings = a_search(tmp_path, monkeypatch)
    planned, number = runs(grid, settings), random.Random(1)
    first, second = (run for cell, run in planned.items() if run and cell.row == "vanilla" and cell.rates)
    write(first.folder, first.config, number, FAILED)
    assert chosen(planned, "GPT-2", "vanilla") is None, "the other may still finish"
    write(second.folder, second.config, number)
    assert losses(planned, "GPT-2", "vanilla")[Rates(1e-3, None)] == math.inf
    assert chosen(planned, "GPT-2", "vanilla") == Rates(3e-3, None)


@pytest.mark.parametrize(("other", "turns"), [([2.0, 2.5], False), ([2.0, 3.5], True), ([3.0, 3.5], False)])
def test_result_that_turns_on_the_rate(other: list[float], turns: bool) -> None:
    """A row with multipliers is compared at its best one."""
    row = {Rates(0.1, 3): 9.0, Rates(0.1, 10): 2.9, Rates(0.3, 3): 3.0, Rates(0.3, 10): math.inf}
    base = {Rates(lr, None): loss for lr, loss in zip((0.1, 0.3), other, strict=True)}
    assert turns_on_rate(row, base) is turns
    assert not turns_on_rate({}, base)


# The whole, with real runs


@pytest.mark.slow
def test_grid_that_fine_tunes(tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = [*TINY, "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512"]
    tuning: dict[str, Any] = {
        "pretrained": [{"name": "small", "overrides": ["model=gpt2"], "at": {"smoke": tiny}}],
        "overrides": {"smoke": ["trainer.micro_batch_size=8", "model.temperature.alpha_init=-4.5"]},
        "search": {"smoke": {"lr": [1e-3, 3e-3], "multiplier": [10]}},
    }
    make_experiment(
        tmp_path / "grids",
        small_text,
        groups=[{"name": "GPT-2", "overrides": ["model=gpt2"], "at": {"smoke": []}, "start": "small"}],
        rows=ROWS,
        metrics=[
            {"name": "loss", "key": "best/val/loss", "compared": True, "smallest": 0.005},
            {"name": "step 0", "key": "step_0/val/loss", "digits": 4, "minus_first": True, "fine_tuned": True},
            {"name": "tau", "key": "best/val/temperature_position"},
            {"name": "lr", "key": "config.optim.lr"},
        ],
        fine_tuning=tuning,
    )
    use(tmp_path / "grids", monkeypatch)
    where = [f"output_dir={tmp_path}/out", f"to={tmp_path}/to"]
    assert main(["tiny", "scale=smoke", *where]) == 0
    settings = GridSettings.model_validate(
        {**Experiment("tiny").values("smoke"), "scale": "smoke", "output_dir": f"{tmp_path}/out"}
    )
    planned = runs(declared(Experiment("tiny")), settings)
    tuned = {cell: run for cell, run in planned.items() if run and cell.group == "GPT-2"}
    assert len(planned) == 1 + 2 * 2 + 2 * 2 == 1 + len(tuned)
    assert len({run.config.init_hash for run in tuned.values()}) == 1
    assert None not in {run.config.init_hash for run in tuned.values()}
    start = {cell: read_summary(run.folder)["step_0/val/loss"] for cell, run in tuned.items()}
    of_row = {row: {loss for cell, loss in start.items() if cell.row == row} for row in ("vanilla", "SSA")}
    assert [len(found) for found in of_row.values()] == [1, 1], "the same start at every seed"
    search, rows = lines(tmp_path / "to" / "smoke_search.csv"), lines(tmp_path / "to" / "smoke_runs.csv")
    assert len(search) == 4
    assert {row["seed"] for row in search} == {str(RESERVED_SEED)}
    best = {row["row"]: row["learning rate"] for row in search if row["chosen"] == "True"}
    assert [(row["row"], row["seed"], row["lr"]) for row in rows] == [
        (row, seed, best[row]) for row in ("vanilla", "SSA") for seed in ("0", "1")
    ]
    cost = of_row["SSA"].pop() - of_row["vanilla"].pop()
    assert {row["step 0"] for row in rows if row["row"] == "SSA"} == {f"{cost:.6g}"}
    assert {row["step 0"] for row in rows if row["row"] == "vanilla"} == {"0"}
    assert {row["tau"] for row in rows if row["row"] == "vanilla"} == {"1"}
    assert all(float(row["tau"]) > 1.05 for row in rows if row["row"] == "SSA")
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = runs(declared(Experiment("tiny")), settings.model_copy(update={"output_dir": f"{tmp_path}/moved"}))
    ids = [[run.config.run_id for run in found.values() if run] for found in (tuned, moved)]
    assert set(ids[0]) < set(ids[1]), "of the content of the start, not of its path"


def test_plan_counts_runs_that_wait(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ablation_token_position", "scale=laptop", "plan=true", f"output_dir={tmp_path}/out"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    tuning, pretraining = 108 * 100 * 2048, 2 * 1000 * 2048
    assert "and 108 runs that start from a pretrained model or wait for a search" in printed
    assert f"110 of 110 runs to do, {tuning + pretraining:,} tokens, about " in printed
    assert not (tmp_path / "out").exists()


def test_run_of_a_search_is_labeled_with_its_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, settings = a_search(tmp_path, monkeypatch)
    labels = [run.label for run in runs(grid, settings).values() if isinstance(run, Run)]
    assert labels == [
        f"GPT-2, {row}, learning rate {lr}{own}, seed {RESERVED_SEED}"
        for row, own in (("vanilla", ""), ("SSA", ", temperatures x 3"))
        for lr in ("0.001", "0.003")
    ]
