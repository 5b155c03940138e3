"""Interleaved timing, paired ratios, peak memory, and the machine that they were measured on."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ssa.record.environment import cpu_model
from ssa.statistics import mean_interval

ROOT = Path(__file__).parent.parent
_BUSY = 0.1  # share of the cores that other processes may use on an idle machine


@dataclass(frozen=True)
class Figure:
    """A measured value with a 95% interval, and its goal if it has one."""

    case: str  # what was measured, and at which sizes
    value: float
    unit: str
    low: float = math.nan
    high: float = math.nan
    goal: str | None = None  # such as "<= 1.08"

    @property
    def reached(self) -> bool | None:
        """Whether the value is at its goal; None without one."""
        if self.goal is None:
            return None
        sign, bound = self.goal.split()
        return self.value <= float(bound) if sign == "<=" else self.value >= float(bound)


Times = dict[str, list[float]]  # seconds of each round, by case


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int = 9, warmup: int = 2) -> Times:
    """Wall time of each case in each round, in seconds.

    Every round runs all cases, alternately from the first and from the last, so that drift of the machine affects all
    alike.  Warm-up rounds are not counted.
    """
    times: Times = {name: [] for name in cases}
    for number in range(warmup + rounds):
        names = list(cases) if number % 2 else list(cases)[::-1]
        gc.collect()
        for name in names:
            began = time.perf_counter()
            cases[name]()
            if number >= warmup:
                times[name].append(time.perf_counter() - began)
    return times


def seconds(case: str, values: Sequence[float], goal: str | None = None) -> Figure:
    """The median of times, with the range of their middle half."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [math.nan] * 3
    return Figure(case, statistics.median(values), "s", quartiles[0], quartiles[2], goal)


def ratio(case: str, of: Sequence[float], to: Sequence[float], goal: str | None = None) -> Figure:
    """The geometric mean of the ratios of paired times, with Student's t interval of their logarithms."""
    made = mean_interval([math.log(one / other) for one, other in zip(of, to, strict=True)]).exponential()
    return Figure(case, made.mean, "x", made.low, made.high, goal)


def exponent(case: str, sizes: Sequence[float], values: Sequence[float], goal: str | None = None) -> Figure:
    """The slope of log(value) over log(size), by least squares, with its 95% interval."""
    from scipy.stats import linregress, t

    fitted = linregress([math.log(size) for size in sizes], [math.log(value) for value in values])
    half = t.ppf(0.975, len(sizes) - 2) * fitted.stderr if len(sizes) > 2 else math.nan
    return Figure(case, float(fitted.slope), "exponent", fitted.slope - half, fitted.slope + half, goal)


def in_process(code: str) -> dict[str, Any]:
    """Runs Python code in a new process; what it prints last, a line of JSON.

    Raises:
        RuntimeError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    printed: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return printed


def machine() -> dict[str, Any]:
    """CPU, instruction sets, cores, memory, versions, and the share of the cores that other processes use now."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    busy = _used_by_others()
    return {
        "cpu": cpu_model(),
        "instructions": sorted(
            name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)
        ),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "busy": round(busy, 3),
        "idle": busy < _BUSY,
    }


def _used_by_others() -> float:
    """Share of all cores that is in use, over a second in which this process sleeps."""
    return float(psutil.cpu_percent(interval=1.0)) / 100


def markdown(figures: Sequence[Figure]) -> str:
    """A Markdown table."""
    marks = {None: "", True: "yes", False: "no"}
    rows = ["| case | value | 95% interval; of seconds, the middle half | goal | reached |", "|---|---|---|---|---|"]
    for one in figures:
        interval = "" if math.isnan(one.low) else f"{_number(one.low)} to {_number(one.high)}"
        value = f"{_number(one.value)} {one.unit}".strip()
        rows.append(f"| {one.case} | {value} | {interval} | {one.goal or ''} | {marks[one.reached]} |")
    return "\n".join(rows)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
