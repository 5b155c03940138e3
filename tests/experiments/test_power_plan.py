"""Power of a planned grid, from committed results and finished runs."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from grid_experiments import grid as declaration
from grid_experiments import make_experiment, use
from run_folders import write

from experiments.__main__ import main
from experiments.engine.experiment import Experiment
from experiments.engine.grid import GridSettings, declared
from experiments.engine.grid_runs import runs
from experiments.engine.power_plan import ClaimPower, claim_powers
from ssa.power import power, seeds_needed, smallest_shown
from ssa.record.runs import load
from ssa.statistics import mean_interval

CLAIM = declaration()["claims"][0]
PAPER = {"quantity": "GPT-2: loss", "row": "SSA", "against": "constant"}
CLAIMS = [{**CLAIM, "paper": PAPER}, {**CLAIM, "row": "constant"}]
DIFFERENCES = {"SSA": (-0.11, -0.05, -0.08, -0.02), "constant": (0.01, -0.02, 0.03, 0.0)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment with two claims and 5 seeds at scale=gpu."""
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.chdir(tmp_path)  # the same relative paths in every test: a run's overrides are composed once
    folder = make_experiment(tmp_path / "grids", Path("text.txt"), claims=CLAIMS)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("  gpu:\n    seeds: 2", "  gpu:\n    seeds: 5"))
    use(tmp_path / "grids", monkeypatch)
    return folder


def commit(folder: Path, scale: str, pairs: int, factor: float = 1.0) -> None:
    """Writes ``<scale>_runs.csv`` with the first pairs of `DIFFERENCES`."""
    rows = [
        {"group": "GPT-2", "row": row, "seed": seed, "loss": 5 + seed + factor * difference, "run": "-"}
        for row, differences in {"vanilla": (0.0,) * 4, **DIFFERENCES}.items()
        for seed, difference in enumerate(differences[:pairs])
    ]
    rows += [{"group": "GPT-2", "row": "SSA", "seed": 9, "loss": "-", "run": "-"}]
    (folder / "results").mkdir(exist_ok=True)
    with (folder / "results" / f"{scale}_runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def planned(tmp_path: Path, scale: str = "gpu", **changes: Any) -> tuple[list[ClaimPower], int]:
    experiment = Experiment("tiny")
    train = [override.replace("scale=smoke", f"scale={scale}") for override in experiment.values(scale)["train"]]
    values = {**experiment.values(scale), "scale": scale, "train": train, "output_dir": "out", **changes}
    settings = GridSettings.model_validate(values)
    frame = load(tmp_path / "out") if (tmp_path / "out").exists() else pd.DataFrame(columns=["status", "damage"])
    grid = declared(experiment)
    found, without = claim_powers(experiment, grid, settings, runs(grid, settings), frame, {})
    return found, len(without)


def spread(row: str, pairs: int = 4, factor: float = 1.0) -> Any:
    return pytest.approx(factor * mean_interval(DIFFERENCES[row][:pairs]).sd, rel=1e-6)


def test_power_from_committed_results(folder: Path, tmp_path: Path) -> None:
    commit(folder, "laptop", 4)
    (ssa, constant), without = planned(tmp_path)
    assert without == 0
    assert (ssa.spread, constant.spread) == (spread("SSA"), spread("constant"))
    assert (ssa.pairs, ssa.seeds, ssa.source) == (4, 5, "results at laptop")
    assert ssa.sizes == (0.005, pytest.approx(0.2))
    assert constant.sizes == (0.005, None)
    level = 0.025 / 2  # two claims
    assert ssa.smallest_shown == smallest_shown(ssa.spread, 5, level)
    assert ssa.power == power(ssa.sizes.expected, ssa.spread, 5, level)
    assert ssa.seeds_for(0.2) == seeds_needed(0.2, ssa.spread, level)


def test_predicted_interval_is_that_of_pairs_with_this_spread(folder: Path, tmp_path: Path) -> None:
    commit(folder, "laptop", 4)
    (ssa, _), _ = planned(tmp_path, seeds=4)
    interval = mean_interval(DIFFERENCES["SSA"]).with_confidence(1 - 0.05 / 2)
    assert ssa.half_width == pytest.approx((interval.high - interval.low) / 2)


@pytest.mark.parametrize(
    ("committed", "source", "pairs"),
    [
        ({"laptop": 4, "gpu": 3}, "results at gpu", 3),
        ({"laptop": 4, "gpu": 1}, "results at laptop", 4),
        ({"laptop": 2, "smoke": 4}, "results at laptop", 2),
        ({"paper": 4, "laptop": 3}, "results at laptop", 3),
    ],
)
def test_nearest_scale_with_two_pairs_is_used(
    folder: Path, tmp_path: Path, committed: dict[str, int], source: str, pairs: int
) -> None:
    for scale, number in committed.items():
        commit(folder, scale, number, 1 + len(scale))
    (ssa, _), _ = planned(tmp_path)
    assert (ssa.source, ssa.pairs) == (source, pairs)
    assert ssa.spread == spread("SSA", pairs, 1 + len(source.removeprefix("results at ")))


@pytest.mark.parametrize("committed", [{}, {"smoke": 4}, {"laptop": 1}, {"paper": 4}])
def test_without_two_pairs_there_is_no_power(folder: Path, tmp_path: Path, committed: dict[str, int]) -> None:
    for scale, number in committed.items():
        commit(folder, scale, number)
    assert planned(tmp_path) == ([], 2)


def finish(tmp_path: Path, seeds: int) -> None:
    """Run folders of the experiment at scale=smoke."""
    experiment = Experiment("tiny")
    values = {**experiment.values("smoke"), "scale": "smoke", "output_dir": "out", "seeds": seeds}
    settings = GridSettings.model_validate(values)
    for number, run in enumerate(runs(declared(experiment), settings).values()):
        assert run
        write(run.folder, run.config, random.Random(number), 0)


def test_finished_runs_or_results_of_the_scale_whichever_are_more(folder: Path, tmp_path: Path) -> None:
    finish(tmp_path, 3)
    (ssa, _), _ = planned(tmp_path, "smoke", seeds=4)
    assert (ssa.source, ssa.pairs, ssa.seeds) == ("finished runs", 3, 4)
    commit(folder, "smoke", 4)
    (ssa, _), _ = planned(tmp_path, "smoke", seeds=4)
    assert (ssa.source, ssa.pairs) == ("results at smoke", 4)


@pytest.fixture
def begin(folder: Path, tmp_path: Path) -> Callable[..., int]:
    where = ["output_dir=out", f"to={tmp_path}/to"]
    return lambda *arguments: main(["tiny", "scale=smoke", "plan=true", *where, *arguments])


def test_plan_prints_the_power(
    folder: Path, begin: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    commit(folder, "smoke", 4)
    assert begin("seeds=6") == 0
    printed = capsys.readouterr().out
    assert "The number of seeds, 6, is fixed before the runs" in printed
    assert "2 claims tested together (Holm)" in printed
    assert "1  GPT-2: SSA - vanilla (4 pairs, results at smoke)" in printed
    first, second = (
        line.split() for line in printed.splitlines() if line.split()[:1] in (["1"], ["2"]) and "±" in line
    )
    sd, level = mean_interval(DIFFERENCES["SSA"]).sd, 0.0125
    assert first == [
        *("1", f"{sd:.2g}", f"{smallest_shown(sd, 6, level):.2g}", "±"),
        f"{mean_interval(DIFFERENCES['SSA'])._replace(n=6).with_confidence(0.975).high - -0.065:.2g}",
        *("0.2", f"{power(0.2, sd, 6, level):.0%}"),
        first[7],
        *(str(seeds_needed(0.2, sd, level)), f"{seeds_needed(0.005, sd, level):,}", "(0.005)"),
    ]
    assert second[5] == "0.005*"
    assert "A spread of 4 pairs is uncertain" in printed


def test_plan_without_pairs_says_so(begin: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert begin() == 0
    printed = capsys.readouterr().out
    assert "No power of 2 claims, of which no two pairs have been seen" in printed
    assert "(GPT-2: SSA - vanilla; GPT-2: constant - vanilla)" in printed
    assert "fixed before the runs" not in printed


def test_unreadable_results_are_one_line(
    folder: Path, begin: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    commit(folder, "smoke", 2)
    path = folder / "results" / "smoke_runs.csv"
    path.write_bytes(b"group,row,seed,loss\n\xff\xfe,")
    assert begin() == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: cannot be read: ")
    assert error.count("\n") == 1
    path.write_text("group,row,seed,other\nGPT-2,SSA,0,1\nGPT-2,SSA\n")
    assert begin() == 0
    assert "No power of 2 claims" in capsys.readouterr().out
