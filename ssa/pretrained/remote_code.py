"""Source files for loading an exported model where this package is not installed (``trust_remote_code``).

They are copies of the package's own modules: the two classes and their transitive imports, in one flat folder.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_CLASSES = ("ssa.pretrained.remote.configuration_ssa", "ssa.pretrained.remote.modeling_ssa")

MODEL_TYPE, ARCHITECTURE = "ssa", "SSAForCausalLM"  # as in the classes, which need transformers to be imported
AUTO_MAP = {"AutoConfig": "configuration_ssa.SSAConfig", "AutoModelForCausalLM": f"modeling_ssa.{ARCHITECTURE}"}


def remote_code() -> dict[str, str]:
    """Contents by file name: all that `AUTO_MAP` needs except third-party packages."""
    files: dict[str, str] = {}
    for entry in _CLASSES:
        modules = _closure(entry)
        sources = {f"{_flat(module)}.py": _relative(module, source) for module, source in modules.items()}
        assert len(sources) == len(modules), f"duplicate file names: {list(modules)}"
        sources[f"{_flat(entry)}.py"] += _indirect(entry, modules)
        files |= sources
    return files


def _closure(entry: str) -> dict[str, str]:
    """Sources by name of a module and its transitive imports from this package."""
    sources: dict[str, str] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module not in sources:
            spec = importlib.util.find_spec(module)  # imports parent packages, not the module
            assert spec is not None, module
            sources[module] = Path(str(spec.origin)).read_text(encoding="utf-8")
            waiting += [name for name, _ in _imports(sources[module])]
    return sources


def _imports(source: str) -> Iterator[tuple[str, int]]:
    """Module and line of each import from this package, all of the form ``from ssa.module import name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert not node.level, f"line {node.lineno}: a relative import"
            assert module != _PACKAGE, f"line {node.lineno}: imports a module, not from it"
            if module.partition(".")[0] == _PACKAGE:
                yield module, node.lineno
        elif isinstance(node, ast.Import):
            assert all(name.name.partition(".")[0] != _PACKAGE for name in node.names), f"line {node.lineno}"


def _relative(module: str, source: str) -> str:
    """The source with a header, and with imports from this package made relative."""
    origin = f"{_PACKAGE} {version(_PACKAGE)}, {module.replace('.', '/')}.py (MIT license)"
    lines = source.splitlines(keepends=True)
    for imported, number in _imports(source):
        line = lines[number - 1]
        lines[number - 1] = line.replace(f"from {imported} import", f"from .{_flat(imported)} import", 1)
    return "".join([f"# Generated from the package {origin}.\n", *lines])


def _indirect(entry: str, modules: dict[str, str]) -> str:
    """Imports of indirectly needed files: from a local folder transformers 4 copies only those imported directly."""
    direct = {entry, *(module for module, _ in _imports(modules[entry]))}
    names = sorted(_flat(module) for module in modules.keys() - direct)
    lines = [f"from .{name} import __name__ as _{name}" for name in names]
    return "\n".join(["\n# For transformers before 5, which only looks here for required files.", *lines, ""])


def _flat(module: str) -> str:
    return module.rpartition(".")[2]
