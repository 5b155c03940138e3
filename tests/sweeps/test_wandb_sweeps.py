"""The W&B sweeps in sweeps/, as they are: W&B's own commands make them and run their agents, against a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from wandb_backend import received, sent, server, without_pictures

from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.record.run_files import load_config, load_status, read_rows, read_summary
from ssa.record.runs import load

FILES = sorted((ROOT / "sweeps").glob("wandb_*.yaml"))
BIN = Path(sys.executable).parent
TINY = ("scale=smoke", "trainer.steps=4", "trainer.eval_every=2", "optim.warmup_steps=1", "data.block_size=32")


def overrides(declared: dict[str, Any]) -> list[str]:
    """What a file gives every run."""
    return [part for part in declared["command"] if not part.startswith("$")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_parameters_are_overrides_that_compose(file: Path) -> None:
    declared = yaml.safe_load(file.read_text())
    for key, domain in declared["parameters"].items():
        assert not isinstance(configured(*overrides(declared)).plain().get(key), dict), "it would hide a whole section"
        for value in domain.get("values", [domain.get("min"), domain.get("max")]):
            configured(*overrides(declared), f"{key}={value}")
    assert declared["command"][:3] == ["${env}", "${interpreter}", "${program}"]
    assert declared["command"][-1] == "${args_no_hyphens}"
    metric = "val/loss" if "early_terminate" in declared else "best/val/loss"  # early_terminate reads rows
    assert (declared["project"], declared["metric"]["name"]) == (configured().logger.project, metric)


def wandb(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "WANDB_DIR": str(folder)}
    command = [str(BIN / "wandb"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def run_sweep(file: Path, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Makes the sweep of a file and runs two of its trials; returns its id and their W&B runs' metas."""
    before = set((folder / "server" / "entity" / "ssa").glob("*/meta.json"))
    (sweep,) = set(re.findall(r"wandb agent entity/ssa/(\w+)", wandb("sweep", str(file), folder=folder)))
    wandb("agent", "--count", "2", f"entity/ssa/{sweep}", folder=folder)
    metas = [
        json.loads(path.read_text())
        for path in sorted((folder / "server" / "entity" / "ssa").glob("*/meta.json"))
        if path not in before
    ]
    return sweep, metas


@pytest.mark.slow
@pytest.mark.wandb_server
@pytest.mark.usefixtures("fresh_wandb")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_sweep(file: Path, small_text: Path, tmp_path: Path) -> None:
    declared = yaml.safe_load(file.read_text())
    text = ("data=text", f"data.train={small_text}", "data.tokenizer=bpe-512", "data.max_eval_tokens=1024")
    declared["command"][-1:-1] = [*TINY, *text, f"output_dir={tmp_path}/outputs"]
    tiny = tmp_path / file.name
    tiny.write_text(yaml.safe_dump(declared))
    with server(tmp_path / "server"):
        sweep, metas = run_sweep(tiny, tmp_path)
        # the same again: a grid's first runs have finished before, and the new sweep has their metric all the same
        again = run_sweep(tiny, tmp_path) if declared["method"] == "grid" else (sweep, metas)
        there, here = load(source="wandb:entity/ssa"), load(tmp_path / "outputs")
    assert list(there.columns) == list(here.columns), "a sweep's parameters are not columns beside the config's"
    folders = {path.parent.name: path.parent for path in (tmp_path / "outputs" / "main").glob("*/status.json")}
    assert len(metas) == len(again[1]) == len(folders) == 2
    assert {meta["name"] for meta in metas} == {meta["name"] for meta in again[1]} == set(folders)
    for of, meta in [(sweep, meta) for meta in metas] + [(again[0], meta) for meta in again[1]]:
        assert (meta["state"], meta["sweep"]) == ("finished", of)
        folder = folders[meta["name"]]
        assert load_status(folder).status == "finished"
        assert load_status(folder).attempt == 1
        files, rows = received(tmp_path / "server", meta["id"])
        assert without_pictures(rows) == sent(read_rows(folder), load_config(folder))
        assert files["summary"]["best/val/loss"] == read_summary(folder)["best/val/loss"]
        tried = {key: files["config"][key] for key in declared["parameters"]}
        config: Config = load_config(folder)
        assert config.run_id == configured(*overrides(declared), *(f"{key}={tried[key]}" for key in tried)).run_id
        assert files["config"]["model"] == config.plain()["model"]
