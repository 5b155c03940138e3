"""Runs of a grid and of ``train.py -m`` as jobs of Hydra's launchers; Slurm's uses its local executor."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
from conftest import ROOT

from ssa.errors import UserError
from ssa.launch.cluster import launch
from ssa.launch.run import Run
from ssa.record.run_files import load_status, read_environment, read_summary

SMALL = ("scale=smoke", "model=gpt2", "data=text", "data.tokenizer=bpe-512", "logger=none")
SHORT = ("trainer.steps=2", "optim.warmup_steps=1", "trainer.eval_every=2", "data.max_eval_tokens=1024")


@pytest.fixture
def overrides(small_text: Path, tmp_path: Path) -> tuple[str, ...]:
    return (*SMALL, *SHORT, f"data.train={small_text}", f"output_dir={tmp_path}/outputs")


@pytest.fixture
def run(overrides: tuple[str, ...]) -> Callable[..., Run]:
    return lambda *more: Run((*overrides, *more), setting=" ".join(more))


def test_a_launcher_that_is_not_installed(run: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^launcher=slurm: no such launcher is installed; valid: .*submitit_slurm"):
        launch([run()], "slurm", tmp_path)
    with pytest.raises(UserError, match=r"^launcher=joblib: not installed; pip install hydra-joblib-launcher; valid:"):
        launch([run()], "joblib", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("hydra.launcher.partitoin=gpu", "hydra.launcher.partitoin: not a setting of Hydra"),
        ("seed=3", "launcher_overrides=seed=3: valid: hydra.launcher.SETTING=VALUE"),
    ],
)
def test_an_unknown_setting_of_the_launcher(run: Callable[..., Run], tmp_path: Path, setting: str, line: str) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    with pytest.raises(UserError, match=line):
        launch([run()], "submitit_slurm", tmp_path, [setting])
    assert list(tmp_path.iterdir()) == []


def test_without_slurm(run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"^launcher=submitit_slurm: .*slurm"):
        launch([run()], "submitit_slurm", tmp_path)


@pytest.mark.slow
def test_a_failed_job_does_not_affect_others(run: Callable[..., Run], tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = "submitit_local"
    lost, good = run("data.train=nowhere/*.txt"), [run("seed=0"), run("seed=1")]
    launch([good[0], lost, good[1]], launcher, tmp_path / "outputs")
    assert [one.is_finished() for one in (*good, lost)] == [True, True, False]
    assert "matches no file" in lost.log.read_text()
    assert read_environment(good[1].folder)["command"] == ["train.py", *good[1].overrides]
    first = read_summary(good[0].folder)["best/val/loss"]
    launch(good, launcher, tmp_path / "outputs")
    assert [load_status(one.folder).attempt for one in good] == [1, 1]
    launch(good[:1], launcher, tmp_path / "outputs", rerun=True)
    assert good[0].folder.with_name(f"{good[0].folder.name}.replaced-1").exists()
    assert read_summary(good[0].folder)["best/val/loss"] == first


@pytest.mark.slow
def test_multirun_with_a_launcher(overrides: tuple[str, ...], run: Callable[..., Run], tmp_path: Path) -> None:
    """Exit code, error lines and logs come back from the jobs' processes."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    command = [
        sys.executable,
        "train.py",
        "-m",
        "hydra/launcher=submitit_local",
        *overrides,
        "data.test=null,nowhere",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 2, done.stderr
    assert said[0].startswith("error: [")
    assert " data.test=nowhere] data.test=nowhere: matches no file" in said[0]
    assert said[1].startswith("error: failed jobs: 1: [")
    finished = run("data.test=null")
    assert finished.is_finished()
    assert read_environment(finished.folder)["command"][0] == "train.py"
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert any("perplexity" in log.read_text() for log in sweep.rglob("*.out"))


@pytest.mark.parametrize("more", [(), ("hydra.sweep.dir=jobs",)])
def test_multirun_without_slurm(tmp_path: Path, more: tuple[str, ...]) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    jobs = [*SMALL, "data.train=text.txt", "seed=0,1"]
    command = ["train.py", "-m", "hydra/launcher=submitit_slurm", *jobs, *more]
    with programs.start(*command, cwd=tmp_path, modules=programs.COMMAND_LINE, PATH="") as done:
        assert done.ended() == 2
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: hydra/launcher=submitit_slurm: ")
    assert "Traceback" not in done.err


def commands() -> list[str]:
    """Commands of sweeps/README.md."""
    lines = (ROOT / "sweeps" / "README.md").read_text().splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


def test_the_readmes_slurm_command_composes(tmp_path: Path) -> None:
    """Composes the jobs' overrides and the launcher's settings, without Slurm."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (command,) = [command for command in commands() if "submitit_slurm" in command]
    overrides = [word for word in command.split()[3:] if not word.startswith(("model=", "seed="))]
    code, out, err, _ = programs.launch("train.py", "--cfg", "hydra", *overrides, cwd=tmp_path)
    assert code == 0, err
    launcher = out[out.index("launcher:") :]
    assert "partition: gpu" in launcher
    assert "timeout_min: 600" in launcher
    assert "SlurmLauncher" in launcher


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["-m scale", "submitit_local", "sweeps/optuna"])
def test_the_readmes_commands_run(tmp_path: Path, kind: str) -> None:
    (command,) = [command for command in commands() if kind in command]
    pytest.importorskip("optuna" if "optuna" in kind else "hydra_plugins.hydra_submitit_launcher")
    for name in ("train.py", "conf", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, *command.split()[1:]]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    states = [load_status(path.parent).status for path in (tmp_path / "outputs" / "main").glob("*/status.json")]
    assert states == ["finished"] * {"-m scale": 4, "submitit_local": 2, "sweeps/optuna": 4}[kind]
