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
    """Hash of torch's version, a module's source and all of `ssa` that it imports, directly or indirectly.

    Imports from `experiments` are not followed.
    """
    found = _sources(module)
    digest = hashlib.sha256(version("torch").encode())
    for name in sorted(found):
        digest.update(found[name].read_bytes())
    return digest.hexdigest()


def _sources(module: str) -> dict[str, Path]:
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
    """Imported names, which are modules or attributes of modules."""
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
    except ModuleNotFoundError:  # an attribute, not a module
        return None
    return Path(spec.origin) if spec and spec.origin else None
