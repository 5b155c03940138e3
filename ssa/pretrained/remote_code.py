"""The source files that let transformers load a model with temperatures where this package is not installed.

They are made from the package's own files: those of the two classes and what they import from the package, directly or
not, side by side in one folder.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

_PACKAGE = __name__.partition(".")[0]
_CLASSES = ("ssa.pretrained.remote.configuration_ssa", "ssa.pretrained.remote.modeling_ssa")

MODEL_TYPE, ARCHITECTURE = "ssa", "SSAForCausalLM"  # as the classes have them; importing them takes transformers
AUTO_MAP = {"AutoConfig": "configuration_ssa.SSAConfig", "AutoModelForCausalLM": f"modeling_ssa.{ARCHITECTURE}"}


def remote_code() -> dict[str, str]:
    """File names and contents, all that `AUTO_MAP` needs besides torch, pydantic and transformers itself."""
    files: dict[str, str] = {}
    for entry in _CLASSES:
        modules = _closure(entry)
        sources = {f"{_flat(module)}.py": _header(module) + _relative(source) for module, source in modules.items()}
        assert len(sources) == len(modules), f"two files of one name: {list(modules)}"
        sources[f"{_flat(entry)}.py"] += _indirect(entry, modules)
        files |= sources
    return files


def _closure(entry: str) -> dict[str, str]:
    """A module and all that it imports from this package, directly or not: their sources by their names."""
    sources: dict[str, str] = {}
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = _path(module).read_text(encoding="utf-8")
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


def _relative(source: str) -> str:
    """The source with its imports from this package relative, to files in the same folder."""
    lines = source.splitlines(keepends=True)
    for module, number in _imports(source):
        line = lines[number - 1]
        lines[number - 1] = line.replace(f"from {module} import", f"from .{_flat(module)} import", 1)
    return "".join(lines)


def _indirect(entry: str, modules: dict[str, str]) -> str:
    """What names in one file all the files it needs: from a local folder transformers 4 takes no others along."""
    direct = {entry, *(module for module, _ in _imports(modules[entry]))}
    names = sorted(_flat(module) for module in modules.keys() - direct)
    lines = [f"from .{name} import __name__ as _{name}" for name in names]
    return "\n".join(["\n# For transformers before 5, which looks for needed files in this one alone.", *lines, ""])


def _header(module: str) -> str:
    path = module.replace(".", "/")
    return f"# Generated from the package {_PACKAGE} {version(_PACKAGE)}, {path}.py (MIT license).\n"


def _flat(module: str) -> str:
    return module.rpartition(".")[2]


def _path(module: str) -> Path:
    spec = importlib.util.find_spec(module)  # imports the packages around the module, not the module
    assert spec is not None, module
    return Path(str(spec.origin))
