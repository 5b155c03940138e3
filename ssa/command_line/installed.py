"""The commands of an installed package, such as ``ssa-train``: each runs a program at the root, `ssa.paths.ROOT`."""

from __future__ import annotations

import runpy
import sys

from ssa import paths


def train() -> None:
    _run_file("train.py")


def evaluate() -> None:
    _run_file("evaluate.py")


def generate() -> None:
    _run_file("generate.py")


def export() -> None:
    _run_file("export.py")


def report() -> None:
    _run_file("report.py")


def experiments() -> None:
    _run_package("experiments")


def sweeps() -> None:
    _run_package("sweeps")


def _run_file(name: str) -> None:
    paths.name_commands()
    runpy.run_path(str(paths.ROOT / name), run_name="__main__")


def _run_package(name: str) -> None:
    paths.name_commands()
    sys.path.insert(0, str(paths.ROOT))  # as of ``python -m`` in the root; worker processes inherit it
    runpy.run_module(name, run_name="__main__", alter_sys=True)
