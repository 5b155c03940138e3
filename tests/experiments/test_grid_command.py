"""The command of a grid, with run folders from `run_folders`: real configs and formats, invented numbers."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from grid_experiments import make_experiment, use
from run_folders import INTERRUPTED, write

from experiments.__main__ import main
from experiments.engine import plan
from experiments.engine.experiment import Experiment, find_experiment
from experiments.engine.grid import GridSettings, Metric, declared
from experiments.engine.grid_experiment import check_keys
from experiments.engine.grid_runs import runs
from ssa.command_line.compose import configured
from ssa.command_line.settings import parse
from ssa.errors import UserError
from ssa.evaluation.tasks import harness
from ssa.files import partial_path

SEEDS = range(3)


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """A function that computes the experiment from the run folders that ``prepare`` made."""
    monkeypatch.chdir(tmp_path)  # the same relative paths in every test: a run's overrides are composed once
    make_experiment(tmp_path / "grids", Path("text.txt"))
    (tmp_path / "text.txt").write_text("text")
    use(tmp_path / "grids", monkeypatch)
    where = ["output_dir=out", f"to={tmp_path}/to"]
    return lambda *arguments: main(["tiny", "scale=smoke", *where, *arguments])


def prepare(tmp_path: Path, ended: dict[tuple[str, int], int] | None = None) -> dict[tuple[str, int], Path]:
    """Run folders by row and seed; ``ended``: exit codes as in `run_folders.write`, None if not started."""
    experiment = Experiment("tiny")
    settings = GridSettings.model_validate({**experiment.values("smoke"), "scale": "smoke", "output_dir": "out"})
    folders = {}
    for number, (cell, run) in enumerate(runs(declared(experiment), settings).items()):
        assert run
        end = (ended or {}).get((cell.row, cell.seed), 0)
        folders[cell.row, cell.seed] = run.folder
        if end is not None:
            write(run.folder, run.config, random.Random(number), end)
    return folders


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_plan_counts_finished_runs_and_writes_nothing(
    begin: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = prepare(tmp_path, {("constant", 1): INTERRUPTED, ("SSA", 0): INTERRUPTED})
    shutil.rmtree(folders["SSA", 1])
    before = files(tmp_path)
    assert begin("plan=true") == 0
    assert files(tmp_path) == before
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if line.strip().startswith("GPT-2, ")]
    a_run = 4 * 8 * 64
    assert [row[2:] for row in rows] == [
        ["2", "0", "0", "0"],
        ["1", "1", "0", f"{a_run // 2:,}"],
        ["0", "1", "1", f"{a_run + a_run // 2:,}"],
    ]
    assert f"3 of 6 runs to do, {2 * a_run:,} tokens, about " in printed
    assert "GB of disk" in printed
    capsys.readouterr()
    assert begin("plan=true", "rerun=true") == 0
    assert f"6 of 6 runs to do, {6 * a_run:,} tokens, about " in capsys.readouterr().out
    assert files(tmp_path) == before


def test_plan_before_any_run(begin: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin("plan=true", "train=scale=smoke,optim.lr=-1") == 0
    assert "6 runs are refused: optim.lr=-1: out of range" in capsys.readouterr().out
    assert begin("plan=true") == 0
    assert "6 of 6 runs to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "to").exists()


def test_time_of_a_run_is_estimated_from_its_flops() -> None:
    """No model of its size is built: one of 124M would take minutes."""
    small, large = (configured(f"scale={scale}", "data=wikitext", "model=gpt2") for scale in ("laptop", "gpu"))
    assert plan._parameters(large).total == pytest.approx(124e6, rel=0.01)
    flops = [6 * plan._parameters(config).total for config in (small, large)]
    assert plan._speed(small) / plan._speed(large) == pytest.approx(flops[1] / flops[0], rel=0.15)


@pytest.mark.parametrize(
    ("argument", "error"),
    {
        "evaluate=tasks=passkey,trails=3": "evaluate=trails: unknown key, did you mean trials?",
        "evaluate=tasks=": "evaluate=tasks=: empty; valid: perplexity, ",
        "evaluate=tasks=perplexity,perplexty": "evaluate=tasks=perplexty: no such task, did you mean perplexity?",
        "evaluate=trials=0": "evaluate=trials=0: out of range; valid: > 0",
        "evaluate=tasks=length,lengths=3": "evaluate=lengths=3: out of range; valid: >= 4",
        "evaluate=tasks=length,lengths=64,2048": "evaluate=lengths=2048: exceeds the model's learned positions",
        "evaluate=stride=128": "evaluate=stride=128: would skip tokens; valid: up to context=64",
        "evaluate=text=nowhere.txt": "evaluate=text=nowhere.txt: matches no file",
        "evaluate=run=outputs/a": "evaluate=run=outputs/a: the experiment's own runs are evaluated",
        "source=wandb::ssa": "source=wandb::ssa: not a W&B project; valid: wandb:ENTITY/PROJECT",
        "launcher=slurm": "launcher=slurm: no such launcher is installed; valid: processes, basic, ",
    }.items(),
)
def test_invalid_settings_are_refused_before_anything_is_printed(
    begin: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argument: str,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    indexed = harness.task_manager
    monkeypatch.setattr(harness, "task_manager", lambda all_tasks: indexed(False))  # all of them take ten seconds
    assert begin(argument) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {error}")
    assert not (tmp_path / "out").exists()


def test_comma_separated_tasks_are_one_argument() -> None:
    asked = parse(GridSettings, ["seeds=2", "train=scale=laptop", "evaluate=tasks=passkey,length,trials=2"])
    assert asked.evaluate == ["tasks=passkey,length", "trials=2"]
    assert asked.tasks() == ["passkey", "length"]


def edit(path: Path) -> None:
    text = path.read_text()
    path.write_text(re.sub(r"\d(?=\D*$)", lambda found: str((int(found[0]) + 1) % 10), text))
    assert path.read_text() != text


FILES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "evaluation/perplexity.json",
    "status.json",
    "summary.json",
)


@pytest.mark.parametrize(("change", "what"), [(edit, "changed"), (Path.unlink, "removed")])
def test_changed_and_removed_files(
    begin: Callable[..., int], tmp_path: Path, change: Callable[[Path], object], what: str
) -> None:
    folders = prepare(tmp_path)
    for folder, name in zip(folders.values(), FILES, strict=True):
        change(folder / name)
    assert begin() == 0
    rows = json.loads((tmp_path / "to" / "smoke_summary.json").read_text())["rows"]
    assert [(row[1]["state"], row[1]["text"]) for row in rows] == 3 * [("damaged", "")]
    notes = " ".join(row[1]["note"] for row in rows)
    for folder, name in zip(folders.values(), FILES, strict=True):
        assert f"{name} {what}" in notes
        assert re.search(rf"To fill it: rm -r [^&]*{re.escape(str(folder))}[^&]*&& python -m experiments", notes)
    assert [row["loss"] for row in lines(tmp_path / "to" / "smoke_runs.csv")] == 6 * ["-"]
    assert not list((tmp_path / "out").rglob("*.log")), "nothing is run by itself"


def test_damaged_run_does_not_affect_others(begin: Callable[..., int], tmp_path: Path) -> None:
    folders = prepare(tmp_path)
    (folders["constant", 1] / "summary.json").write_text("{")
    assert begin() == 0
    rows = json.loads((tmp_path / "to" / "smoke_summary.json").read_text())["rows"]
    assert [row[1]["state"] for row in rows] == ["value", "damaged", "value"]
    counted = [row["loss"] == "-" for row in lines(tmp_path / "to" / "smoke_runs.csv")]
    assert counted == [False, False, False, True, False, False]
    provenance = json.loads((tmp_path / "to" / "smoke_provenance.json").read_text())
    assert 5 * 12 <= provenance["seconds_of_runs"] <= 5 * 13


def test_result_files_of_a_grid(begin: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path)
    own = partial_path(tmp_path / "to" / "smoke")
    killed, other = (own.with_name(own.name.replace(str(os.getpid()), number)) for number in (str(2**22 + 5), "1"))
    for left in (killed, other):
        left.mkdir(parents=True)
    assert begin() == 0
    found = files(tmp_path / "to")
    assert {path.name for path in found} - {other.name} == {
        *(f"smoke_summary.{ending}" for ending in ("csv", "md", "tex", "html", "json")),
        *("smoke_runs.csv", "smoke_statistics.csv", "smoke_conclusions.csv", "smoke_provenance.json"),
        "smoke_records.parquet",
        *(f"smoke_differences.{ending}" for ending in ("png", "svg", "pdf", "txt")),
    }
    assert other.exists()
    printed = capsys.readouterr().out
    assert "6 of 6 runs have finished before" in printed
    (conclusion,) = lines(tmp_path / "to" / "smoke_conclusions.csv")
    assert conclusion["sentence"] in printed
    other.rmdir()
    assert begin() == 0
    del found[other]
    provenance = tmp_path / "to" / "smoke_provenance.json"
    assert {**files(tmp_path / "to"), provenance: b""} == {**found, provenance: b""}, "byte by byte"


def test_claim_without_runs_is_unfinished_and_stays_first(
    begin: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = prepare(tmp_path)
    for seed in (0, 1):
        (folders["SSA", seed] / "summary.json").unlink()
    assert begin() == 0
    (conclusion,) = lines(tmp_path / "to" / "smoke_conclusions.csv")
    assert (conclusion["verdict"], conclusion["seeds"], conclusion["mean"]) == ("unfinished, 0 of 2 seeds", "0", "-")


def test_misspelled_source_is_one_line_and_nothing_is_run(
    begin: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "smoke_runs.csv").write_text("old")
    assert begin("source=wandb:ssa") == 2
    assert capsys.readouterr().err == "error: source=wandb:ssa: not a W&B project; valid: wandb:ENTITY/PROJECT\n"
    assert not list((tmp_path / "out").rglob("*.log"))
    assert {path.name: text for path, text in files(tmp_path / "to").items()} == {"smoke_runs.csv": b"old"}


def test_only_grids_have_a_plan() -> None:
    with pytest.raises(UserError, match=r"^plan: unknown key"):
        parse(
            find_experiment("table2_denoising").settings,
            ["plan=true"],
            find_experiment("table2_denoising").values("smoke"),
        )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("scale=smoke,seed=4", "train=seed=4: the seed= is a setting of the experiment"),
        ("scale=smoke,model=llama", "train=model=llama: the groups set model; valid: another key"),
        ("scale=smoke,model/temperature=token", "train=model/temperature=token: the rows set model/temperature"),
        ("trainer.steps=2", "train=trainer.steps=2: without scale=smoke; train= replaces all"),
    ],
)
def test_override_that_the_grid_sets_is_refused(
    train: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"output_dir={tmp_path}/out", f"to={tmp_path}/to"]
    assert main(["ablation_strategies", "scale=smoke", f"train={train}", "plan=true", *where]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_group_without_runs_at_the_scale_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablation_qkv", "scale=smoke", "groups=Pythia", "plan=true"]) == 2
    assert capsys.readouterr().err.startswith("error: scale=smoke: has no run of Pythia; valid: another of groups=, or")


def test_metric_that_no_run_has_is_refused() -> None:
    grid = declared(find_experiment("ablation_strategies"))
    misspelled = grid.model_copy(update={"metrics": [Metric(name="loss", key="best/val/los")]})
    frame = pd.DataFrame({"status": ["finished"], "best/val/loss": [1.0]})
    with pytest.raises(UserError, match="key=best/val/los: no run has it, did you mean best/val/loss"):
        check_keys(misspelled, frame)
