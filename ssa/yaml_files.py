"""Reader of YAML files: safe types alone, no key twice, no nesting or repetition that exhausts memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ssa.errors import UserError, first_line
from ssa.files import refuse_lfs_pointer

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where available
_LARGEST = 100_000  # values, each counted as often as aliases repeat it
_DEEPEST = 100  # levels of nesting
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_INVALID = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, whose keys are text.

    Raises:
        UserError: it is not valid, or holds no mapping; the message begins with the path and has the line.
        OSError: the file cannot be read.
    """
    refuse_lfs_pointer(path, str(path))
    content = path.read_bytes()
    try:
        loader = _LOADER(content)
        try:
            root = loader.get_single_node()
            _size(root, {}, 0)
            values = None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except _INVALID as error:  # PyYAML raises whatever a wrong value meets
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not valid YAML: {problem or first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, KEY: VALUE")
    return values


def _size(node: Any, known: dict[int, int], depth: int) -> int:
    """The number of values in a node, aliases followed; ``known``: sizes by id, 0 while a node is counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if (size := known.get(id(node))) is not None:
        if not size:
            raise _problem("an alias inside of what it stands for", node)
        return size
    if depth > _DEEPEST:
        raise _problem(f"nested more than {_DEEPEST} levels deep", node)
    known[id(node)] = 0
    items = node.value
    if isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in items])
        items = [value for _, value in items]
    size = 1 + sum(_size(item, known, depth + 1) for item in items)
    if size > _LARGEST:
        raise _problem(f"more than {_LARGEST:,} values", node)
    known[id(node)] = size
    return size


def _check_keys(keys: list[Any]) -> None:
    seen = set()
    for key in keys:
        if key.tag not in (_TEXT, _MERGE):
            raise _problem(f"key {key.value}: not text" if isinstance(key.value, str) else "a key is not text", key)
        if key.value in seen:
            raise _problem(f"key {key.value} given twice", key)
        seen.add(key.value)


def _problem(text: str, node: Any) -> Exception:
    error: Exception = yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)
    return error
