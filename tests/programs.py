"""A program in a process of its own, and the modules that it imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

# What takes seconds to import, or more than a tenth of one
HEAVY = {"torch", "lightning", "transformers", "datasets", "wandb", "lm_eval", "safetensors", "tokenizers", "numpy"}
HEAVY |= {"pandas", "scipy", "matplotlib", "optuna", "huggingface_hub"}


class Outcome(NamedTuple):
    """What a program printed, and the heavy modules among those that it imported."""

    code: int
    out: str
    err: str
    heavy: set[str]


def launch(program: str, *arguments: str, cwd: Path) -> Outcome:
    """``python PROGRAM ARGUMENTS``; the program is a file in the root, or ``-m`` before the name of a package."""
    path = str(ROOT / program) if program.endswith(".py") else program
    done = subprocess.run(
        [sys.executable, "-X", "importtime", path, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stderr.splitlines(keepends=True)
    imported = {line.split()[-1] for line in lines if line.startswith("import time:")}
    assert "site" in imported, "Python reports imports in another form"
    said = "".join(line for line in lines if not line.startswith("import time:"))
    return Outcome(done.returncode, done.stdout, said, imported & HEAVY)
