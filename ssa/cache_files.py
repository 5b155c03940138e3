"""The folder that holds what is made once and used again, and the files in it: atomic writes, content hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssa.atomic import replacing
from ssa.errors import UserError

ALWAYS_HASHED = 256 << 20  # bytes; a larger file is hashed again only when its size or time has changed
_REMEMBERED = "file_hashes.json"


def cache_root(cache_dir: str | None) -> Path:
    """``data.cache_dir``, else ``$SSA_CACHE_DIR``, else ``~/.cache/ssa``; absolute, not yet created."""
    chosen = cache_dir or os.environ.get("SSA_CACHE_DIR") or "~/.cache/ssa"
    return Path(chosen).expanduser().absolute()


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Create ``folder``; whatever the file system refuses inside the block is the user's to mend.

    Raises:
        UserError: the folder or a file in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cache: cannot write to {error.filename or folder} ({reason}); "
            "set data.cache_dir or SSA_CACHE_DIR to a folder with room that can be written"
        ) from error


def write_atomically(path: Path, content: bytes) -> None:
    """All of ``content`` appears at ``path`` at once, or nothing does."""
    with writing_to(path.parent), replacing(path) as partial:
        partial.write_bytes(content)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object stored at ``path``; None where there is none or it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Atomic; sorted keys, readable."""
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True).encode())


def read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_checked` wrote; None where there is nothing or anything else."""
    stored = read_json(path) or {}
    content = stored.get("content")
    return content if isinstance(content, dict) and stored.get("sha256") == hash_of(content) else None


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """Atomic, with a checksum."""
    write_json(path, {"sha256": hash_of(content), "content": content})


def hash_of(*parts: object) -> str:
    """The sha256, in hexadecimal, of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def hash_of_file(path: Path, root: Path) -> str:
    """The sha256 of a file's content.  ``root`` (a cache folder) remembers those of files over `ALWAYS_HASHED`."""
    status = path.stat()
    if status.st_size <= ALWAYS_HASHED:
        return _read_and_hash(path)
    name, stamp = str(path.resolve()), [status.st_size, status.st_mtime_ns]
    remembered = read_json(root / _REMEMBERED) or {}
    if remembered.get(name, [])[:2] == stamp:
        return str(remembered[name][2])
    digest = _read_and_hash(path)
    with contextlib.suppress(UserError):  # a cache that may only be read is hashed every time
        write_json(root / _REMEMBERED, {**remembered, name: [*stamp, digest]})
    return digest


def _read_and_hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
