"""Grids of tiny training runs: with failing runs, with damaged files."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from grid_experiments import GRID, make_experiment, use

from experiments.__main__ import main
from ssa.record.run_files import load_status
from ssa.record.run_record import read_status

pytestmark = pytest.mark.slow
EVALUATED = [*GRID["metrics"], {"name": "perplexity", "key": "eval/perplexity/perplexity", "task": "perplexity"}]
EVALUATE = "evaluate=tasks=perplexity"
TABLES = ("summary.csv", "statistics.csv", "runs.csv", "conclusions.csv")


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "to" / f"smoke_{name}").read_bytes() for name in TABLES}


def runs(out: Path) -> list[Path]:
    return sorted(path.parent for path in (out / "experiments" / "main").glob("*/config.yaml"))


def begin(experiments: Path, folder: Path, patch: pytest.MonkeyPatch, *arguments: str) -> int:
    use(experiments, patch)
    return main(["tiny", "scale=smoke", f"output_dir={folder}/out", f"to={folder}/to", *arguments])


def summary(folder: Path) -> dict[str, dict[str, Any]]:
    """The cells of the loss, by row."""
    plain = json.loads((folder / "to" / "smoke_summary.json").read_text())
    return {row[0]["text"]: row[1] for row in plain["rows"]}


def test_failed_runs_do_not_affect_others(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = {
        "misspelled": ["trainer.stepz=3"],
        "diverges": ["optim.lr=1e30"],
        "no data": ["data.train=nowhere/*.txt"],
    }
    rows = [*GRID["rows"][:1], *({"name": name, "overrides": more} for name, more in fails.items()), GRID["rows"][2]]
    make_experiment(tmp_path / "grids", small_text, rows=rows)
    assert begin(tmp_path / "grids", tmp_path, monkeypatch) == 2
    printed, error = capsys.readouterr()
    assert error.startswith("error: 6 runs failed: "), error
    assert error.count("\n") == 1
    reasons = {
        "misspelled": "trainer.stepz: unknown key",
        "diverges": "error: the loss is not finite at step",
        "no data": "error: data.train=nowhere/*.txt: matches no file",
    }
    cells = summary(tmp_path)
    for name, reason in reasons.items():
        assert f"failed: GPT-2, {name}, seed 1: {reason}" in printed
        assert f"failed: GPT-2, {name}, seed 0: {reason}" in printed
        assert (cells[name]["state"], cells[name]["text"]) == ("failed", "")
        assert f"failed ({reason}" in cells[name]["note"]
        assert (
            f"To fill it: python -m experiments tiny scale=smoke to={tmp_path}/to output_dir={tmp_path}/out"
            in cells[name]["note"]
        )
    logs = set(re.findall(r"\((\S+\.log)\)", printed))
    assert len(logs) == 4
    assert "; and 5 more, named above; rerun the command to retry" in error
    assert all("error: " in Path(log).read_text() for log in logs)
    assert cells["vanilla"]["state"] == cells["SSA"]["state"] == "value"
    assert len(cells["SSA"]["runs"]) == 2
    assert begin(tmp_path / "grids", tmp_path, monkeypatch, "evaluate=tasks=passkey,lengths=8") == 2
    printed, error = capsys.readouterr()
    said = "evaluation: lengths=8: too short for a passkey"
    assert error.startswith("error: 10 runs failed: "), error
    named = [printed.count(f"failed: GPT-2, {name}: {said}") for name in ("vanilla, seed 0", "SSA, seed 1")]
    assert named == [1, 1], printed
    plain = json.loads((tmp_path / "to" / "smoke_summary.json").read_text())
    column = plain["columns"].index("accuracy")
    assert {row[column]["state"] for row in plain["rows"]} == {"failed"}
    assert [summary(tmp_path)[row] for row in ("vanilla", "SSA")] == [cells["vanilla"], cells["SSA"]], "as it was"
    good = [run for run in runs(tmp_path / "out") if load_status(run).status == "finished"]
    assert [load_status(run).attempt for run in good] == 4 * [1]


def test_fail_fast_stops_all_runs(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ["trainer.steps=5000", "trainer.checkpoint_every=1000", "trainer.eval_every=1000"]
    rows = [{"name": "vanilla", "overrides": long}, {"name": "diverges", "overrides": ["optim.lr=1e30"]}]
    make_experiment(tmp_path / "grids", small_text, rows=rows, claims=[{**GRID["claims"][0], "row": "diverges"}])
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "smoke_summary.csv").write_text("old")
    assert begin(tmp_path / "grids", tmp_path, monkeypatch, "fail_fast=true", "jobs=3") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: fail_fast=true: stopped; 1 run failed: GPT-2, diverges, seed 0: error: the loss")
    assert error.count("\n") == 1
    assert {path.name: path.read_text() for path in (tmp_path / "to").iterdir()} == {"smoke_summary.csv": "old"}
    # One that is stopped before it trains cannot say so: without its lock it counts as interrupted.
    states = {read_status(run).status for run in runs(tmp_path / "out")}
    assert states <= {"failed", "interrupted"}
    assert "failed" in states
    interrupted = [run for run in runs(tmp_path / "out") if read_status(run).status == "interrupted"]
    assert all((run / "checkpoints" / "last.ckpt").exists() or load_status(run).step == 0 for run in interrupted)


def edit(path: Path) -> None:
    text = path.read_text()
    path.write_text(re.sub(r'("(?:best/)?val/loss": )\d', r"\g<1>1", text))
    assert path.read_text() != text


def test_damaged_files_are_found_and_the_advice_of_the_table_repairs_them(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_experiment(tmp_path / "grids", small_text, metrics=EVALUATED)
    assert begin(tmp_path / "grids", tmp_path, monkeypatch, EVALUATE) == 0
    whole = tables(tmp_path)
    with (tmp_path / "to" / "smoke_runs.csv").open() as file:
        folders = {
            (row["row"], row["seed"]): tmp_path / "out" / "experiments" / "main" / row["run"]
            for row in csv.DictReader(file)
        }
    edit(folders["vanilla", "0"] / "metrics.jsonl")
    (folders["vanilla", "1"] / "checkpoints" / "best.ckpt").unlink()
    edit(folders["constant", "0"] / "summary.json")
    (folders["constant", "1"] / "status.json").unlink()
    (folders["SSA", "0"] / "config.yaml").unlink()
    (folders["SSA", "1"] / "status.json").write_text("{")
    assert begin(tmp_path / "grids", tmp_path, monkeypatch, EVALUATE) == 2, "status.json cannot be read: it fails"
    cells = summary(tmp_path)
    notes = " ".join(cell["note"] for cell in cells.values())
    assert {cell["state"] for cell in cells.values()} == {"damaged"}
    for said in (
        "metrics.jsonl changed",
        "checkpoints/best.ckpt removed",
        "summary.json changed",
        "status.json removed",
        "config.yaml removed",
        "status.json changed",
    ):
        assert said in notes
    advised = [folder for listed in re.findall(r"rm -r ([^&]+) &&", notes) for folder in listed.split()]
    assert sorted(advised) == sorted(map(str, folders.values()))
    for folder in advised:
        shutil.rmtree(folder)
    assert begin(tmp_path / "grids", tmp_path, monkeypatch, EVALUATE) == 0
    assert tables(tmp_path) == whole
