"""``plan=true`` of train.py: what it prints, that it writes nothing, and its memory against that of real runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from rich.console import Console

from ssa.command_line.compose import configured
from ssa.planning import hardware
from ssa.planning.report import show

TRAIN = str(ROOT / "train.py")


def shown(*overrides: str, width: int = 100) -> str:
    console = Console(width=width, highlight=False, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show(configured("plan.show=true", *overrides), console)
    return console.export_text()


def test_a_plan_for_a_gpu() -> None:
    text = " ".join(shown("scale=gpu", "model=gpt2", "plan.device=h100", "plan.memory=40GB").split())
    assert re.search(r"parameters 87,\d{3},\d{3}", text)
    for part in ("vocabulary 2,048 data.tokenizer=bpe-2048", "32 x 1024 tokens, bf16-mixed", "of 40 GB (H100)"):
        assert part in text
    for part in ("weights 0.35 GB", "an assumed MFU of 40% (plan.mfu)", "device-hours", "disk: tokens – known once"):
        assert part in text


def test_a_plan_that_does_not_fit() -> None:
    text = " ".join(shown("scale=gpu", "plan.device=l4", "plan.memory=8GB").split())
    assert "DOES NOT FIT" in text


def test_a_narrow_terminal_shows_all_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "timed_speed", lambda precision: 1e11)
    lines = shown("trainer.device=cpu", width=72).splitlines()
    assert max(map(len, lines)) <= 72
    assert any(line.split()[:1] == ["allocator"] for line in lines)


def test_plans_of_several_devices() -> None:
    settings = ("scale=gpu", "model=llama", "model/size=llama3-1b", "trainer.devices=8", "plan.device=a100-40gb")
    text = " ".join(shown(*settings, "trainer.checkpoint_activations=true").split())
    assert "gathered layer, embeddings" in text or "gradient buckets" in text
    assert "devices 8" in text
    assert "recomputed" in text


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TRAIN, "logger=none", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_command_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSA_CACHE_DIR", str(tmp_path / "cache"))
    done = run("scale=smoke", "plan=true", "plan.memory=1GB", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "plan of gpt2-nano-ssa-pydocs-s0-" in done.stdout
    assert "of 1 GB (cpu)" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is that of glibc")
@pytest.mark.parametrize(
    "overrides",
    [
        ("model=ssa_gpt2",),
        ("model=ssa_llama", "model/size=micro", "trainer.batch_size=8", "trainer.micro_batch_size=4"),
    ],
)
def test_planned_memory_is_that_of_a_run(overrides: tuple[str, ...], tmp_path: Path) -> None:
    few = ("trainer.steps=3", "trainer.eval_every=3", "optim.warmup_steps=0", "data.max_eval_tokens=2000")
    planned = run(*overrides, *few, "plan=true", folder=tmp_path)
    found = re.search(r"memory per device +([\d.]+) GB", planned.stdout)
    assert found, planned.stderr
    assert run(*overrides, *few, folder=tmp_path).returncode == 0
    (summary,) = tmp_path.glob("outputs/main/*/summary.json")
    measured = json.loads(summary.read_text())["peak_memory_bytes"] / 1e9
    assert float(found[1]) == pytest.approx(measured, rel=0.15)
