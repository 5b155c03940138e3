"""The grammar of values on the command line: Hydra's, for every program."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ssa.files import expanded

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_PATHS = {"init_from", "resume", "output_dir"}
_PATHS |= {f"data.{key}" for key in ("train", "validation", "test", "tokenizer", "cache_dir")}
# A quoted string where one can begin, an escaped character, or any other character
_PIECES = re.compile(r"""(?<![^\s=\[{(,:])(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\\.|.""", re.DOTALL)


def read_value(text: str) -> Any:
    """One value: null, a boolean, a number, a quoted string without its quotes, a list, a mapping, or text.

    Text that Hydra's grammar rejects or would split, such as ``a=b`` or ``naïve``, is returned unchanged.
    """
    override = _parsed(f"KEY={text}")
    return text if override is None or override.is_sweep_override() else override.value()


def read_text(text: str) -> str:
    """A value of a text field: unchanged, except that quotes around all of it are removed."""
    return str(read_value(text)) if text.lstrip()[:1] in ("'", '"') else text


def read_list(text: str) -> list[Any]:
    """Values separated by commas, with or without brackets around them.

    Commas inside quotes or brackets do not separate: ``a=[1,2],b=3`` has two items.
    """
    items = list(_items(text))
    if len(items) == 1 and items[0][0] == "[" and items[0][-1] == "]":
        items = list(_items(items[0][1:-1]))
    return [read_value(item) for item in items]


def read_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """The value of each key or group, as text."""
    return {key: read_text(value) for key, _, value in (override.partition("=") for override in overrides)}


def with_literal_paths(overrides: Iterable[str]) -> list[str]:
    """Overrides with quotes around existing paths that Hydra's grammar would read as something else.

    So ``nan``, ``null`` or ``a,b (1)`` is the file of that name, if there is one.
    """
    return [_with_literal_path(override) for override in overrides]


def _with_literal_path(override: str) -> str:
    key, _, text = override.partition("=")
    if key.lstrip("+") not in _PATHS or not text:
        return override
    return f"{key}={','.join(map(_quoted, [text] if is_path(text) else _items(text))) or text}"


def is_path(text: str) -> bool:
    """Whether a file or folder of this name exists."""
    return os.path.exists(expanded(text))


def _quoted(path: str) -> str:
    if not is_path(path):
        return path
    override = _parsed(f"KEY={path}")
    if override and not override.is_sweep_override() and override.value() == path and "${" not in path:
        return path
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), path)
    return "'" + escaped.replace("${", "\\${") + "'"


def overridden(overrides: Iterable[str]) -> list[str]:
    """Keys and groups of overrides, without ``+``, ``~`` and ``@package``; unparsable overrides are skipped."""
    return [override.key_or_group for override in map(_parsed, overrides) if override is not None]


def _parsed(override: str) -> Override | None:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # a quarter of a second, seldom needed
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def _items(text: str) -> Iterator[str]:
    """Split at commas outside quotes and brackets; empty items are skipped."""
    depth, item = 0, ""
    for piece in _PIECES.findall(text):
        depth += (piece in "[{(") - (piece in "]})" and depth > 0)
        if piece == "," and not depth:
            yield from filter(None, [item.strip()])
            item = ""
        else:
            item += piece
    yield from filter(None, [item.strip()])
