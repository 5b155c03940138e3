"""Training beside another process that computes: threads that spin while they wait would make both slow."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from benchmarks.measure import ROOT, Figure, seconds
from benchmarks.settings import Settings

STEPS = 12
_TRAIN = f"""
import json, sys, time
import ssa  # its setting of waiting threads comes before torch
import torch
from benchmarks import models
from benchmarks.step import SMALL, step
run = step(*models.ours(SMALL, models.SSA), SMALL)
for _ in range(3):
    run()
print("ready", flush=True)
sys.stdin.readline()
times = []
for _ in range({STEPS}):
    began = time.perf_counter()
    run()
    times.append(time.perf_counter() - began)
print(json.dumps(times))
"""


def figures(settings: Settings) -> list[Figure]:
    """Seconds of a step alone and beside another run, and what two runs side by side take of two in turn."""
    (alone,), beside = _together(1), _together(2)
    slower = statistics.median(beside[0]) / statistics.median(alone)
    return [
        seconds("step alone", alone),
        seconds("step beside another run", beside[0]),
        Figure("step beside another run / alone", slower, "x", goal="<= 2.0"),
        Figure("two runs side by side / in turn", max(map(sum, beside)) / (2 * sum(alone)), "x", goal="<= 1.0"),
    ]


def _together(count: int) -> list[list[float]]:
    """Times of the steps of ``count`` processes that start at once."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _TRAIN], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]
