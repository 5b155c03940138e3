"""Hash of a function's source dependencies, to invalidate cached results."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path


@functools.cache
def source_hash(module: str) -> str:
    """Of a module's source and of all of `ssa` that it imports, directly or not, and of torch's version.

    Args:
        module: its name, which may be one of `experiments`; what it imports of these is not followed.
    """
    found = _sources(module)
    digest = hashlib.sha256(version("torch").encode())
    for name in sorted(found):
        digest.update(found[name].read_bytes())
    return digest.hexdigest()


def _sources(module: str) -> dict[str, Path]:
    """By module's name."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else _source(name)
        if path is not None:
            found[name] = path
            waiting += [other for other in _imported(path) if other.split(".")[0] == "ssa"]
    return found


def _imported(path: Path) -> set[str]:
    """Names of modules, and of what may be one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a name in a module
        return None
    return Path(spec.origin) if spec and spec.origin else None
