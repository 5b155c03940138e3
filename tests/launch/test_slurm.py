"""A real Slurm: runs of two tasks, requeued, canceled and over their time limit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import slurm_cluster
from conftest import ROOT

pytestmark = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing())
SMALL = ["scale=smoke", "logger=none", "model=gpt2", "trainer.precision=32-true", "model.n_layer=1"]
LONG = ["trainer.steps=100000", "trainer.eval_every=100000", "trainer.checkpoint_every=20", "trainer.log_every=10"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    # A folder of pytest's may not be read by the user munge.
    with TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster.cluster(Path(folder)) as environment:
        yield environment


@pytest.fixture
def script(slurm: dict[str, str], tmp_path: Path) -> Any:
    """Submits a batch script of one ``srun``; returns the number of the job."""

    def submit(*overrides: str, tasks: int = 2, options: tuple[str, ...] = ()) -> str:
        train = [sys.executable, str(ROOT / "train.py"), *SMALL, *overrides, f"output_dir={tmp_path}/out"]
        text = f"#!/bin/bash\nexec srun {' '.join(train)} > {tmp_path}/log-$SLURM_JOB_ID 2>&1\n"
        (tmp_path / "job.sh").write_text(text)
        command = ["sbatch", "--parsable", f"--ntasks={tasks}", "--requeue", "-o", "/dev/null", *options]
        done = subprocess.run([*command, str(tmp_path / "job.sh")], env=slurm, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return submit


def status(tmp_path: Path) -> dict[str, Any]:
    found = list((tmp_path / "out").glob("main/*/status.json"))
    return json.loads(found[0].read_text()) if found else {"status": "absent", "step": 0}


def last_step(tmp_path: Path) -> int:
    found = list((tmp_path / "out").glob("main/*/metrics.jsonl"))
    lines = found[0].read_text().splitlines() if found else []
    return json.loads(lines[-1])["step"] if lines else 0


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def restarted(slurm: dict[str, str], job: str, tmp_path: Path) -> bool:
    """Whether a requeued job has started again, for which Slurm would wait two minutes."""
    subprocess.run(["scontrol", "update", f"jobid={job}", "StartTime=now"], env=slurm, capture_output=True)
    return status(tmp_path).get("attempt") == 2


@pytest.mark.slow
def test_two_tasks_train_one_run(slurm, script, tmp_path) -> None:
    job = script("trainer.devices=2", "trainer.strategy=fsdp", options=("--wait",))
    assert status(tmp_path)["status"] == "finished", (tmp_path / f"log-{job}").read_text()
    log = (tmp_path / f"log-{job}").read_text()
    assert log.count("validation perplexity") == 2, "printed once, with that of the n-gram models"
    assert "devices  2, fsdp" in log


@pytest.mark.slow
def test_a_grid_on_slurm(slurm, tmp_path) -> None:
    jobs = ["hydra/launcher=submitit_slurm", "hydra.launcher.tasks_per_node=2", "hydra.launcher.timeout_min=10"]
    command = [sys.executable, "train.py", "-m", *jobs, *SMALL, "trainer.devices=2", "seed=0,1"]
    command += ["trainer.steps=4", "trainer.eval_every=2", f"output_dir={tmp_path}/out"]
    done = subprocess.run(command, env=slurm, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    states = [json.loads(path.read_text())["status"] for path in (tmp_path / "out").glob("main/*/status.json")]
    assert states == ["finished", "finished"]
    printed = done.stdout + done.stderr
    assert printed.count("Bypassing sacct") <= 3, "one warning, which three handlers print"
    assert "accounting storage" not in printed


@pytest.mark.faults
def test_a_requeued_job_resumes(slurm, script, tmp_path) -> None:
    job = script("trainer.devices=2", *LONG)
    wait_for(lambda: last_step(tmp_path) >= 60)
    subprocess.run(["scontrol", "requeue", job], env=slurm, check=True)
    wait_for(lambda: status(tmp_path)["status"] == "interrupted")
    assert status(tmp_path)["step"] >= 60
    wait_for(lambda: restarted(slurm, job, tmp_path))
    wait_for(lambda: "resumed  at step" in (tmp_path / f"log-{job}").read_text())
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait_for(lambda: status(tmp_path)["status"] == "interrupted")


@pytest.mark.slow
def test_a_canceled_job_is_saved(slurm, script, tmp_path) -> None:
    job = script("trainer.devices=2", *LONG)
    wait_for(lambda: last_step(tmp_path) >= 20)
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait_for(lambda: status(tmp_path)["status"] == "interrupted")
    assert "to resume" in (tmp_path / f"log-{job}").read_text().lower()


@pytest.mark.faults
def test_the_warning_before_the_time_limit_saves_and_requeues(slurm, script, tmp_path) -> None:
    job = script("trainer.devices=2", *LONG, options=("--time=1", "--signal=USR1@30"))
    wait_for(lambda: status(tmp_path)["status"] == "interrupted")
    wait_for(lambda: restarted(slurm, job, tmp_path))
    subprocess.run(["scancel", job], env=slurm, check=True)
    wait_for(lambda: status(tmp_path)["status"] == "interrupted")
