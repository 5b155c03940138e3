"""Imports point one way: a module imports from its own room or those below it, also inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SSA = Path(__file__).parents[1] / "ssa"
# From the top down, as in CONTRIBUTING.md; a name ending in "/" is a folder.
ROOMS = [
    ["report/", "theory/"],
    ["command_line/"],
    ["training/"],
    ["evaluation/"],
    ["pretrained/"],
    ["run_model.py", "temperature_files.py"],
    ["temperature_view.py", "generation.py"],
    ["record/"],
    ["text/"],
    ["attention_stats.py", "device.py", "perplexity.py", "statistics.py"],
    ["transformer.py"],
    ["attention.py"],
    ["rotary.py", "kv_cache.py", "temperature.py"],
    ["temperature_rules.py"],
    ["temperature_part.py"],
    ["config.py"],
    ["plotting.py"],
    ["model_config.py", "config_errors.py", "atomic.py"],
    ["errors.py"],
]


def room(module: Path) -> int:
    path = module.relative_to(SSA)
    name = f"{path.parts[0]}/" if len(path.parts) > 1 else path.name
    return next(number for number, names in enumerate(ROOMS) if name in names)


def imported(source: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ssa":
            for target in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                path = SSA.joinpath(*str(target).split(".")[1:]).with_suffix(".py")
                if path.is_file():
                    yield path
        elif isinstance(node, ast.Import):
            for alias in node.names:
                path = SSA.joinpath(*alias.name.split(".")[1:]).with_suffix(".py")
                if alias.name.startswith("ssa.") and path.is_file():
                    yield path


MODULES = sorted(path for path in SSA.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SSA)))
def test_imports_point_down(module: Path) -> None:
    upward = [str(other) for other in imported(module.read_text()) if room(other) < room(module)]
    assert upward == []


def test_there_is_no_circle_between_modules() -> None:
    imports = {module: set(imported(module.read_text())) for module in MODULES}
    done: set[Path] = set()
    while ready := {module for module in imports if module not in done and imports[module] - {module} <= done}:
        done |= ready
    assert set(imports) - done == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SSA)))
def test_the_package_knows_nothing_of_the_experiments(module: Path) -> None:
    names = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in names if "experiments" in ast.unparse(node)]
