"""A W&B backend on this machine, and what it has received.

SSA_WANDB_SERVER names a program that serves one, prints its address, and keeps what it gets in
``DIR/entity/PROJECT/RUN_ID/{meta,config,summary}.json, history.jsonl``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ssa.config import Config
from ssa.record.run_record import RunRecord
from ssa.record.wandb_names import at_wandb, of_run

Configured = Callable[..., Config]
KEY = "0123456789abcdef" * 2 + "01234567"
SERVER = os.environ.get("SSA_WANDB_SERVER", "")
_WITH_VIEWS = """
import os, runpy
program = runpy.run_path(os.environ["SSA_WANDB_SERVER"])
Store, main, write_json = (program[name] for name in ("Store", "main", "write_json"))

def on_upsertView(self, entityName, projectName, name, **view):
    write_json(self.path(entityName, projectName, ".views", f"{name}.json"), {"name": name, **view})
    return {"view": {"id": name, "name": name}, "inserted": True}

Store.on_upsertView = on_upsertView
main()
"""  # the program, and what it lacks: saved views, in DIR/entity/PROJECT/.views/NAME.json


def attempts(record: RunRecord) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((record.folder / "wandb.json").read_text())["attempts"]
    return found


@contextmanager
def server(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A W&B backend, which this process's W&B then takes for its own."""
    if not SERVER:
        pytest.skip("SSA_WANDB_SERVER is not set")
    command = [sys.executable, "-c", _WITH_VIEWS, "--dir", str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, pytest.MonkeyPatch.context() as patch:
        assert process.stdout
        patch.setenv("WANDB_BASE_URL", process.stdout.readline().strip())
        patch.setenv("WANDB_API_KEY", KEY)
        try:
            yield process
        finally:
            process.kill()


def received(folder: Path, wandb_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the server has of a run: meta, config and summary, and the rows without W&B's own values."""
    run_folder = folder / "entity" / "ssa" / wandb_id
    files = {name: json.loads((run_folder / f"{name}.json").read_text()) for name in ("meta", "config", "summary")}
    history = run_folder / "history.jsonl"
    rows = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
    return files, [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def without_pictures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not isinstance(value, dict)} for row in rows]


def sent(rows: list[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl as W&B gets them."""
    return [at_wandb(row, config.logger.detail) for row in rows]


def assert_whole(folder: Path, record: RunRecord, state: str = "finished") -> None:
    """The newest attempt's W&B run says what the run folder says."""
    files, rows = received(folder, attempts(record)[-1]["id"])
    assert without_pictures(rows) == sent(record.rows(), record.config)
    assert files["config"] == record.config.plain()
    meta = files["meta"]
    group = of_run(record.config)["group"]
    assert (meta["state"], meta["name"], meta["group"]) == (state, record.config.run_id, group)
