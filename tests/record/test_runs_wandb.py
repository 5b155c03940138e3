"""The run store from W&B equals that from folders; with W&B's real client and `wandb sync`."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from wandb_backend import KEY, Configured, server

from ssa.config import Config
from ssa.errors import UserError
from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.settings import EvaluateSettings
from ssa.record.environment import Environment
from ssa.record.run_record import RunRecord, run_folder
from ssa.record.runs import load
from ssa.record.wandb_mirror import WandbMirror
from ssa.record.wandb_runs import _found
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train

pytestmark = pytest.mark.usefixtures("fresh_wandb")
SOURCE = "wandb:entity/ssa"
TINY = ("trainer.steps=4", "optim.warmup_steps=0", "trainer.eval_every=2", "trainer.checkpoint_every=2")
NOT_THERE = ["folder", "error", "damage"]  # W&B has no such thing, or another


def interrupt(config: Config, step: int) -> None:
    """Train until a signal at the step."""
    original = LanguageModule.training_step

    def training_step(self: LanguageModule, *arguments: Any) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LanguageModule, "training_step", training_step)
        with pytest.raises(SystemExit):
            train(config)


def measure(config: Config, **settings: object) -> None:
    evaluate(EvaluateSettings.model_validate({"run": str(run_folder(config)), "tasks": ["perplexity"], **settings}))


def sync(folder: Path) -> None:
    """Send offline runs, oldest first, to the running server."""
    for path in sorted((folder / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime):
        command = [Path(sys.executable).with_name("wandb"), "sync", path]
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def logged(config: Config, summary: dict[str, Any] | None) -> None:
    """A run of one row, which failed if it has no summary."""
    with RunRecord.open(config) as record:
        record.begin(Environment({}, None))
        mirror = WandbMirror.open(config, record)
        row = {"step": 1, "tokens": 1, "train/loss": 2.0, "val/loss": 3.0}
        record.log(row)
        mirror.log(row)
        if summary is None:
            record.set_status("failed", error="ValueError: no")
            return mirror.finish(1)
        values = {"run_id": config.run_id, "status": "finished", "tokens": 1, **summary}
        mirror.summary(values)
        mirror.finish(0)
        return record.finish(values, step=1)


def wandb_runs(config: Config) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run_folder(config) / "wandb.json").read_text())["attempts"]
    return found


@pytest.mark.wandb_server
def test_the_same_table_as_from_the_folders(
    wandb_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    evaluated, resumed = (wandb_config(*TINY, f"seed={seed}") for seed in (0, 1))
    synced, measured_offline = (wandb_config(*TINY, f"seed={seed}", "logger.mode=offline") for seed in (2, 3))
    with server(tmp_path / "server"):
        train(evaluated)
        measure(evaluated)
        interrupt(resumed, step=2)
        train(resumed)
        for config in (synced, measured_offline):
            train(config)
        measure(measured_offline, limit=1)
        sync(run_folder(synced))
        sync(run_folder(measured_offline))
        there, here = load(source=SOURCE), load(synced.output_dir)
    assert not (tmp_path / "temporary" / "entity").exists(), "W&B's empty folders are gone"
    assert (tmp_path / "temporary").exists(), "and no other"
    assert len(wandb_runs(resumed)) == 2
    assert len(wandb_runs(measured_offline)) == 2, "one of the training, one of the evaluation"
    assert list(here["status"]) == 4 * ["finished"]
    assert here["eval/perplexity/perplexity"].count() == 2
    assert here["commit"].all()
    pd.testing.assert_frame_equal(there.drop(columns=NOT_THERE), here.drop(columns=NOT_THERE), check_exact=True)
    assert [*there["damage"], *there["error"]] == 8 * [""]
    assert there["folder"].str.startswith("http://127.0.0.1:").all()
    ids = {config.run_id: wandb_runs(config)[-1 if config is resumed else 0]["id"] for config in (evaluated, resumed)}
    assert [there.loc[run_id, "folder"].endswith(f"/{wandb_id}") for run_id, wandb_id in ids.items()] == [True, True]


@pytest.mark.wandb_server
def test_non_finite_values_and_failed_runs(
    wandb_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setattr("ssa.record.wandb_runs._PAGE", 2)  # of six W&B runs
    values = {
        "best/val/loss": math.nan,
        "best/test/loss": math.inf,
        "x": -math.inf,
        "y": None,
        "n": 2**40,
        "whole": 3.0,
    }
    with server(tmp_path / "server"):
        logged(wandb_config("seed=0"), values)
        logged(wandb_config("seed=1"), None)
        logged(wandb_config("seed=2"), {"best/val/loss": 1.5, "n": 1, "whole": 2.0})
        logged(wandb_config("seed=2", "rerun=true"), {"best/val/loss": 2.5, "n": 1, "whole": 2.0})
        logged(wandb_config("seed=3"), {"val/loss": 4.5, "val/unigram_perplexity": 9.5})  # names of an older version
        with wandb.init(project="ssa", name="another program", config={"seed": 1}) as other:
            other.log({"val/loss": 1})
        there, here = load(source=SOURCE), load(wandb_config().output_dir)
    pd.testing.assert_frame_equal(there.drop(columns=NOT_THERE), here.drop(columns=NOT_THERE), check_exact=True)
    of_seed = {row["config.seed"]: row for row in there.to_dict("records")}
    assert [of_seed[seed]["status"] for seed in range(3)] == ["finished", "failed", "finished"]
    assert math.isnan(of_seed[0]["best/val/loss"])
    assert (of_seed[0]["best/test/loss"], of_seed[0]["x"], of_seed[0]["n"]) == (math.inf, -math.inf, 2**40)
    assert math.isnan(of_seed[1]["best/val/loss"]), "a row's value is not the result of a run that failed"
    assert of_seed[2]["best/val/loss"] == 2.5, "the newest"
    assert (of_seed[3]["best/val/loss"], of_seed[3]["reference/val/unigram_perplexity"]) == (4.5, 9.5)
    assert not [name for name in there.columns if name.startswith("val/")]


@pytest.mark.parametrize("prefix", ["", "best/"])
def test_metrics_of_the_best_weights_have_one_name(wandb_config: Configured, prefix: str) -> None:
    """Version 0.1 overwrote the last value of ``val/loss`` with that of the best weights."""
    summary = {
        "status": "finished",
        "train/loss": 2.0,
        "val/loss": 3.0,
        "attention/entropy": 0.5,
        "temperature/query": 1.0,
        f"{prefix}val/loss": 2.5,
        "step_0/val/loss": 9.0,
    }
    config = wandb_config().plain()
    found = _found("an-id", [SimpleNamespace(summary_metrics=summary, config=config, url="", state="finished")])
    assert found.summary == {"status": "finished", "best/val/loss": 2.5, "step_0/val/loss": 9.0}


# Errors are one line, and do not affect local runs


def refused(source: str = SOURCE) -> str:
    """The error message."""
    with pytest.raises(UserError) as caught:
        load(source=source)
    assert str(caught.value).startswith(f"source={source}: ")
    assert len(load(".")) == 0
    return str(caught.value).removeprefix(f"source={source}: ")


@pytest.mark.parametrize("source", ["", "wandb", "wandb:", "wandb:a", "wandb:a/b/c", "wandb:/b", "mlflow:a/b", "a/b"])
def test_a_misspelled_source(source: str) -> None:
    assert refused(source) == "not a W&B project; valid: wandb:ENTITY/PROJECT"


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert refused() == "no API key is set; `wandb login` or WANDB_API_KEY sets one"


def test_an_invalid_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert refused().startswith("WANDB_API_KEY invalid: API key must have 40")


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_mode_is_respected(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    assert refused() == f"W&B is set to {mode}, as by WANDB_MODE={mode}; WANDB_MODE=online reads it"


def test_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port of the discard protocol: nothing listens
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
    assert refused() == "no answer from http://127.0.0.1:9 within 2 s"


@pytest.mark.wandb_server
def test_a_server_that_hangs(tmp_path: Path) -> None:
    with server(tmp_path / "server", "--hang", "600"):  # as long as a test may take
        assert refused().startswith("no answer from http://127.0.0.1:")


@pytest.mark.wandb_server
def test_a_server_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "3")
    with server(tmp_path / "server", "--down-after", "1"):
        assert refused().startswith("no answer from http://127.0.0.1:")


@pytest.mark.wandb_server
def test_a_key_that_is_refused(tmp_path: Path) -> None:
    with server(tmp_path / "server", "--fail-first", "1000000", "--fail-status", "401"):
        assert "Failed to verify credentials with http://127.0.0.1:" in refused()


@pytest.mark.wandb_server
def test_an_unknown_project(tmp_path: Path) -> None:
    with server(tmp_path / "server"):
        assert refused("wandb:entity/none") == "Could not find project none"


@pytest.mark.wandb_server
def test_a_project_without_runs_of_this_program(tmp_path: Path) -> None:
    import wandb

    with server(tmp_path / "server"):
        wandb.init(project="ssa", name="another program").finish()
        runs = load(source=SOURCE)
    assert runs.empty
    assert runs.index.name == "run_id"
