"""The run store: a table of 2,000 run folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, Figure, interleaved, seconds
from benchmarks.settings import Settings
from ssa.record.runs import load

RUNS = 2000
GOAL = "<= 20"  # seconds
TINY = (
    "scale=smoke logger=none model.n_layer=1 model.n_head=1 model.d_model=8 data.tokenizer=bpe-300 trainer.steps=4 "
    "trainer.eval_every=2 optim.warmup_steps=1"
)


def figures(settings: Settings) -> list[Figure]:
    """Seconds to load them, checksums included, and without."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = copies(Path(folder), RUNS)
        cases = {
            f"{RUNS:,} runs, checksums verified": lambda: load(outputs),
            f"{RUNS:,} runs, without checksums": lambda: load(outputs, checked=False),
        }
        times = interleaved(cases, rounds=3, warmup=0)
        return [seconds(name, values, GOAL) for name, values in times.items()]


def copies(folder: Path, count: int) -> Path:
    """Trains one tiny run and links it ``count`` times; the folder that holds them."""
    command = [sys.executable, "train.py", *TINY.split(), f"output_dir={folder / 'one'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (run,) = (folder / "one" / "main").iterdir()
    for number in range(count):
        shutil.copytree(run, folder / "many" / "main" / f"{run.name}-{number}", copy_function=os.link)
    return folder / "many"
