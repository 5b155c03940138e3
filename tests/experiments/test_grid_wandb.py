"""A grid's table from runs on W&B, through its real client, equals that from run folders byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from grid_experiments import GRID, make_experiment, use
from wandb_backend import KEY, server

from experiments.__main__ import main
from experiments.engine.experiment import Experiment

pytestmark = pytest.mark.usefixtures("fresh_wandb")
TABLES = ("summary.csv", "statistics.csv", "runs.csv", "conclusions.csv")
EVALUATED = [*GRID["metrics"], {"name": "perplexity", "key": "eval/perplexity/perplexity", "task": "perplexity"}]


def tables(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"smoke_{name}").read_bytes() for name in TABLES}


@pytest.mark.wandb_server
def test_the_table_of_wandbs_runs(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grids"
    make_experiment(folder, small_text, metrics=EVALUATED)
    use(folder, monkeypatch)
    here, there = tmp_path / "here", tmp_path / "there"
    train = ",".join(
        [*Experiment("tiny").values("smoke")["train"], "logger.project=grids", "logger.timeout_seconds=20"]
    )
    command = ["tiny", "scale=smoke", "evaluate=tasks=perplexity", f"train={train}"]
    with server(tmp_path / "server"):
        logged = [*command, f"output_dir={tmp_path}/out", "logger=wandb", f"to={here}"]
        assert main(logged) == 0, capsys.readouterr()
        elsewhere = [*command, f"output_dir={tmp_path}/empty", "source=wandb:entity/grids"]
        assert main([*elsewhere, f"to={there}"]) == 0, capsys.readouterr()
        assert tables(there) == tables(here)
        assert not list((tmp_path / "empty").rglob("config.yaml")), "nothing is run"
        assert "evaluate=tasks=perplexity" in (there / "smoke_summary.md").read_text()
        capsys.readouterr()
        assert main([*elsewhere[:-1], "source=wandb:entity/none", f"to={there}"]) == 2
        error = capsys.readouterr().err
        assert error == "error: source=wandb:entity/none: Could not find project none\n"
        assert tables(there) == tables(here), "the earlier results are as they were"


def test_wandb_cannot_be_reached(
    small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_experiment(tmp_path / "grids", small_text)
    use(tmp_path / "grids", monkeypatch)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    where = [f"output_dir={tmp_path}/out", f"to={tmp_path}/to"]
    assert main(["tiny", "scale=smoke", *where, "source=wandb:entity/grids"]) == 2
    error = capsys.readouterr().err
    assert error == "error: source=wandb:entity/grids: no answer from http://127.0.0.1:9 within 2 s\n"
    assert not list(tmp_path.glob("to/*"))
