"""Text that ships with Python: its documentation (pydoc topics and docstrings), and the source of its library.

Both need no network.  Sources are parsed, never imported.  A document of the documentation holds the docstrings of a
module, or a topic; repeated docstrings are dropped, so that none is in two splits.  A module is in the same split of
both.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from ssa.errors import UserError
from ssa.files import hash_of, hash_of_bytes

PROSE_VERSION = 1  # increment when documents are composed differently
TOPICS = "pydoc_data.topics"
_TABLES = {"encodings", "pydoc_data"}
_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class PyDocs:
    """Modules are assigned to splits by a hash of their names; topics, which quote each other, are all in train."""

    splits = frozenset({"train", "validation", "test"})
    notes: Sequence[str] = ()
    name = "pydocs"

    def __init__(self, validation_fraction: float, stdlib: Path | None = None) -> None:
        self._fraction = validation_fraction
        self._stdlib = stdlib or Path(sysconfig.get_path("stdlib"))
        self._sources = dict(_sources(self._stdlib))

    @property
    def fingerprint(self) -> str:
        """A hash of the Python version, the sources and the composition of documents."""
        contents = [(name, hash_of_bytes(source)) for name, source in self._sources.items()]
        return hash_of([self.name, PROSE_VERSION, sys.version_info[:3], self._fraction, contents])

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split.

        Raises:
            UserError: this Python has no documentation.
        """
        if not self._documents:
            raise UserError(
                f"data={self.name}: {self._stdlib} holds no text (a stripped Python?); "
                "use another Python, or data=text data.train=GLOB"
            )
        return (text for name, text in self._documents if self._split_of(name) == split)

    @functools.cached_property
    def _documents(self) -> list[tuple[str, str]]:  # about 2 MB
        return list(_without_repeats(self._sources))

    def _split_of(self, module: str) -> str:
        if module == TOPICS:
            return "train"
        position = int(hash_of_bytes(module.encode())[:16], 16) / 2**64
        return "test" if position < self._fraction else "validation" if position < 2 * self._fraction else "train"


class PySource(PyDocs):
    """The source of each module, a document; without tables (character sets) and the topics."""

    name = "pysource"

    @functools.cached_property
    def _documents(self) -> list[tuple[str, str]]:  # about 9 MB
        texts = ((name, source.decode(errors="replace")) for name, source in self._sources.items())
        return [(name, text) for name, text in texts if name.partition(".")[0] not in _TABLES]


def _sources(stdlib: Path) -> Iterator[tuple[str, bytes]]:
    """(module name, source), sorted by path, without tests and installed packages."""
    for folder, subfolders, names in os.walk(stdlib):
        subfolders[:] = sorted(name for name in subfolders if name not in _EXCLUDED and name.isidentifier())
        for path in (Path(folder, name) for name in sorted(names) if name.endswith(".py")):
            parts = path.relative_to(stdlib).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_bytes()


def _without_repeats(sources: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """(module name, document) of every module or topic, without text that occurred before."""
    seen: set[str] = set()
    for module, source in sources.items():
        tree = _parse(source)
        for title, entries in _topics(tree) if module == TOPICS else [_docstrings(module, tree)]:
            new = [(heading, text) for heading, text in entries if text not in seen]
            seen.update(text for _, text in new)
            if new:
                yield module, "\n\n".join([title, *(f"{heading}\n\n{text}".strip() for heading, text in new)]) + "\n"


_Page: TypeAlias = tuple[str, list[tuple[str, str]]]  # title, [(heading, text)]


def _docstrings(module: str, tree: ast.Module) -> _Page:
    entries = [("", ast.get_docstring(tree)), *_definitions(tree, "")]
    return module, [(heading, text.strip()) for heading, text in entries if text and text.strip()]


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, str | None]]:
    """(heading, docstring) of every class and function below ``node``, in source order."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            name = prefix + child.name
            yield _heading(name, child), ast.get_docstring(child)
            yield from _definitions(child, name + ".")
        elif isinstance(child, ast.stmt | ast.excepthandler):
            yield from _definitions(child, prefix)


def _heading(name: str, definition: _Definition) -> str:
    if isinstance(definition, ast.ClassDef):
        return f"class {name}"
    given = definition.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [argument.arg for argument in given.kwonlyargs]
    names += [f"**{given.kwarg.arg}"] if given.kwarg else []
    return f"{name}({', '.join(names)})"


def _topics(tree: ast.Module) -> Iterator[_Page]:
    """Entries of the dictionary ``topics`` of string literals."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield str(key.value), [("", inspect.cleandoc(value.value).strip())]


def _parse(source: bytes) -> ast.Module:
    """Without contents if it cannot be parsed."""
    with warnings.catch_warnings(), contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        warnings.simplefilter("ignore")  # invalid escapes in old sources
        return ast.parse(source)
    return ast.Module([], [])
