"""Imports of large libraries in programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

from conftest import ROOT

OPTIONAL = ("matplotlib", "scipy", "transformers")


def test_training_is_imported_without_the_optional_packages_of_torchmetrics() -> None:
    program = f"""
import json, sys
import ssa.training.preloaded
from ssa.training.train import L
from lightning_utilities.core.imports import RequirementCache, package_available
packages = {OPTIONAL!r}
print(json.dumps([
    [name for name in packages if name in sys.modules],
    [bool(RequirementCache(name)) for name in packages],
    [package_available(name) for name in packages],
    L.Trainer.__name__,
]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    installed = [find_spec(name) is not None for name in OPTIONAL]
    assert json.loads(done.stdout) == [[], installed, installed, "Trainer"]
