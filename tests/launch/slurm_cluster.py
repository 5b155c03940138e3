"""A Slurm cluster of one node, this machine, for tests: Debian's slurmctld, slurmd, slurm-client and munge, as root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sinfo", "srun")
PACKAGES = "slurmctld slurmd slurm-client munge"
_CPUS = 8  # that Slurm believes in, so that several small jobs run at once
_START_SECONDS = 60


def missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm cluster needs Linux and root"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)} (apt-get install {PACKAGES})" if absent else ""


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A running cluster with its files in a folder.  Yields the environment that its commands need."""
    folder.chmod(0o755)
    host, ports = socket.gethostname(), [_free_port() for _ in range(2)]
    munge = folder / "munge"
    munge.mkdir()
    shutil.chown(munge, "munge", "munge")
    key = munge / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    shutil.chown(key, "munge", "munge")
    conf = folder / "slurm.conf"
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": host,
        "SlurmUser": "root",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "AuthInfo": f"socket={munge}/socket",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "SlurmdParameters": "config_overrides",
        "ReturnToService": 2,
        "SchedulerParameters": "sched_interval=2,batch_sched_delay=0",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "MpiDefault": "none",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines.append(f"NodeName={host} NodeAddr=127.0.0.1 CPUs={_CPUS} State=UNKNOWN")
    lines.append("PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    conf.write_text("\n".join(lines) + "\n")
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    files = [f"--{name}={munge}/{name}" for name in ("socket", "key-file", "pid-file", "log-file", "seed-file")]
    files[1] = f"--key-file={key}"
    daemons = [
        ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground", *files],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in daemons:
            with (folder / f"{len(running)}.log").open("wb") as log:
                running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(0.5)
        _await_node(environment, folder)
        yield environment
    finally:
        for daemon in reversed(running):
            daemon.terminate()
        for daemon in running:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(5)
            daemon.kill()  # slurmctld waits minutes for jobs that are completing
            daemon.wait()


def _await_node(environment: dict[str, str], folder: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        found = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True)
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"Slurm did not start: {found.stdout} {found.stderr}\n{logs}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port
