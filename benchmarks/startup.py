"""Help, refusals and a first step: processor time of new processes."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile

from benchmarks.measure import ROOT, Figure, seconds
from benchmarks.settings import Settings

ROUNDS = 3
#: arguments -> goal in seconds of processor time; {} is an empty folder
COMMANDS = {
    "train.py --help": "<= 1.5",
    "train.py data=text data.train={}/missing.txt": "<= 1.5",
    "train.py modle=gpt2": "<= 1.5",
    "evaluate.py run={}/missing": "<= 1.5",
    "report.py folder={}/missing": "<= 1.5",
    "train.py scale=smoke logger=none output_dir={} rerun=true": None,
}


def figures(settings: Settings) -> list[Figure]:
    """User and system time of each command."""
    found = []
    for command, goal in COMMANDS.items():
        with tempfile.TemporaryDirectory() as folder:
            times = [_processor_seconds(command.format(folder)) for _ in range(ROUNDS)]
        found.append(seconds(f"processor time, {command.format('DIR')}", times, goal))
    return found


def _processor_seconds(command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program, *arguments = command.split()
    subprocess.run([sys.executable, str(ROOT / program), *arguments], cwd=ROOT, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
