"""Imports point one way: a module imports from its own room or those below it, also inside functions."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# From the top down, as in CONTRIBUTING.md; a name ending in "/" is a folder.
ROOMS = [
    ["benchmarks/", "experiments/", "sweeps/"],
    ["ssa/launch/", "ssa/report/"],
    ["ssa/command_line/"],
    ["ssa/training/"],
    ["ssa/planning/"],
    ["ssa/evaluation/"],
    ["ssa/export/"],
    ["ssa/record/"],
    ["ssa/pretrained/"],
    ["ssa/text/"],
    ["ssa/adapter/", "ssa/theory/", "ssa/viz/"],
    ["ssa/device.py", "ssa/hub_client.py"],
    ["ssa/config.py"],
    ["ssa/rule_names.py"],
    ["ssa/config_errors.py", "ssa/perplexity.py", "ssa/power.py", "ssa/statistics.py", "ssa/yaml_files.py"],
    ["ssa/files.py", "ssa/imports.py", "ssa/processes.py", "ssa/progress.py"],
    ["ssa/bundle.py", "ssa/errors.py", "ssa/paths.py", "ssa/redaction.py", "ssa/model/"],
]


def room(module: Path) -> int:
    path = module.relative_to(ROOT).as_posix()
    return next(number for number, names in enumerate(ROOMS) if any(path.startswith(name) for name in names))


def imported(module: Path) -> Iterator[Path]:
    """The modules of this repository that a module imports."""
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            names = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if name.split(".")[0] in ("ssa", "benchmarks", "experiments", "sweeps") and path.is_file():
                yield path


PACKAGES = [ROOT / name for name in ("ssa", "benchmarks", "experiments", "sweeps")]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py") if path.name != "__init__.py")
MODEL = [path for path in MODULES if path.is_relative_to(ROOT / "ssa" / "model")]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(module: Path) -> None:
    beside = [name for name in ROOMS[room(module)] if not module.relative_to(ROOT).as_posix().startswith(name)]
    for other in imported(module):
        assert room(other) >= room(module), f"{other} is in a higher room"
        assert not any(other.relative_to(ROOT).as_posix().startswith(name) for name in beside), f"{other} is beside"


def test_there_is_no_circle_between_modules() -> None:
    imports = {module: set(imported(module)) for module in MODULES}
    done: set[Path] = set()
    while ready := {module for module in imports if module not in done and imports[module] - {module} <= done}:
        done |= ready
    assert set(imports) - done == set()


@pytest.mark.parametrize("module", MODEL, ids=lambda path: path.name)
def test_the_model_imports_torch_and_itself_alone(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top = name.split(".")[0]
            assert top == "torch" or name.startswith("ssa.model.") or top in sys.stdlib_module_names, name


def test_experiments_are_beside_their_engine() -> None:
    folders = {path.name for path in (ROOT / "experiments").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {name for name in folders if not (ROOT / "experiments" / name / "config.yaml").is_file()} == {"engine"}


@pytest.mark.parametrize("folder", sorted({path.parent for path in (ROOT / "tests").rglob("test_*.py")}))
def test_the_tests_mirror_the_rooms(folder: Path) -> None:
    name = folder.relative_to(ROOT / "tests")
    if str(name) == "faults":  # of all rooms
        return
    assert (ROOT / "ssa" / name).is_dir() or (ROOT / name).is_dir()
