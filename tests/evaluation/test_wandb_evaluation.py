"""Evaluation metrics are logged to the run's W&B run, with W&B's real client."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from wandb_backend import (
    Configured,
    attempts,
    received,
    sent,
    server,
    without_pictures,
)

from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.settings import EvaluateSettings
from ssa.record.run_files import read_rows
from ssa.record.run_record import RunRecord, run_folder
from ssa.training.train import train

pytestmark = pytest.mark.usefixtures("fresh_wandb")


def evaluated(folder: Path, **settings: object) -> dict[str, float]:
    """Evaluate and return the metrics as named in W&B."""
    results = evaluate(EvaluateSettings.model_validate({"run": str(folder), "tasks": ["perplexity"], **settings}))
    found = results["perplexity"]["metrics"]
    return {f"eval/perplexity/{name}": metric["value"] for name, metric in found.items()}


@pytest.mark.wandb_server
def test_online_run_is_resumed(wandb_config: Configured, tmp_path: Path) -> None:
    config = wandb_config()
    with server(tmp_path / "server"):
        train(config)
        metrics = evaluated(run_folder(config))
    with RunRecord.open(config) as record:
        (attempt,) = attempts(record)
    files, rows = received(tmp_path / "server", attempt["id"])
    assert {name: files["summary"][name] for name in metrics} == pytest.approx(metrics)
    assert without_pictures(rows) == sent(read_rows(record.folder), config), "nothing is doubled"
    assert files["summary"]["best/val/loss"] > 0, "what was there stays"
    assert files["meta"]["state"] == "finished"


@pytest.mark.slow
def test_offline_run_gets_a_new_run_with_all_metrics(
    wandb_config: Configured,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = wandb_config("trainer.steps=2", "optim.warmup_steps=0", "trainer.eval_every=2")
    train(config)
    capfd.readouterr()
    evaluated(run_folder(config), limit=1)
    assert "W&B: offline" in capfd.readouterr().out
    with RunRecord.open(config) as record:
        first, second = attempts(record)
    (file,) = (record.folder / "wandb").glob(f"offline-run-*-{second['id']}/*.wandb")
    deadline = time.monotonic() + 60  # W&B's service may write the end after the run has finished
    wanted = (b"eval/perplexity/word_perplexity", b"attention/entropy", b"evaluate")
    while (missing := [name for name in wanted if name not in file.read_bytes()]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert missing == []
    assert first["id"] != second["id"]
