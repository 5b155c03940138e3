"""Files: atomic writes, JSON, SHA-256 hashes, locks, and the cache folder."""

from __future__ import annotations

import csv
import errno
import glob
import hashlib
import io
import json
import math
import os
import platform
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from ssa.errors import DiskError, UserError, first_line

ALWAYS_HASHED = 256 << 20  # bytes; a larger file is hashed again only when its size, times or inode have changed
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_REMEMBERED = "file_hashes.json"
_ABANDONED = 24 * 3600  # seconds
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_DEEPEST = 100  # levels of nesting in a JSON file; those read here have less than ten
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` for a file or a folder, moved to ``path`` in one step if the block succeeds.

    After a crash ``path`` is the old one or the new one.  A folder replaces nothing or an empty folder.
    """
    partial = partial_path(path)
    try:
        with _named(path):
            yield partial
            if partial.is_file():
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        remove(partial)


def partial_path(path: Path) -> Path:
    """A hidden path beside ``path`` for this process to write to.  Those that dead processes left are removed.

    A process of this host is dead if it does not exist; one of another host, which may share the disk, if it has not
    written for a day.
    """
    host = hash_of_bytes(platform.node().encode())[:8]
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        on, _, pid = left.name.split(".")[-2].rpartition("-")
        with suppress(OSError, ValueError):
            if (not psutil.pid_exists(int(pid))) if on == host else time.time() - left.stat().st_mtime > _ABANDONED:
                remove(left)
    return path.with_name(f".{path.name}.{host}-{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a whole file; text is UTF-8.  After a crash it is the old one or the new one."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, content: bytes) -> None:
    """Append all of the content or, where it does not fit, nothing; on return the operating system has it."""
    with path.open("ab", buffering=0) as file:
        size, left = os.fstat(file.fileno()).st_size, content
        try:
            with _named(path):
                while left:
                    left = left[file.write(left) :]  # a disk that fills takes a part, and refuses the rest
        except BaseException:
            with suppress(OSError):
                os.truncate(path, size)
            raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; see `to_json`."""
    write_atomic(path, to_json(values))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file written by `write_json`.

    Raises:
        UserError: the file is missing or damaged.
    """
    refuse_lfs_pointer(path, str(path))
    try:
        return parse_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}") from None


def read_json_or_none(path: Path) -> dict[str, Any] | None:
    """The same; None where the file is missing, unreadable or damaged."""
    try:
        return read_json(path)
    except (UserError, OSError):
        return None


def to_json(values: Mapping[str, Any], indent: int | None = 2) -> str:
    """JSON text with a final newline; ``indent=None`` puts it on one line.

    JSON has no NaN or infinity: they become the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
    ``float()`` accepts and `parse_json` turns back into floats.
    """
    return json.dumps(_to_finite(values), indent=indent, allow_nan=False) + "\n"


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    r"""CSV text; lines end with ``\n``."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """The object that `to_json` wrote.

    Raises:
        UserError: it is not a JSON object; the message begins with ``where``, its file and line.
    """
    try:
        values = _to_floats(json.loads(text))
    except RecursionError:
        raise UserError(f"{where} is damaged: nested more than {_DEEPEST} levels deep") from None
    except ValueError as error:
        raise UserError(f"{where} is damaged: {first_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is damaged: it holds no JSON object")
    return values


def read_checked(path: Path) -> dict[str, Any] | None:
    """The content that was written `with_checksum`; None where the file is missing, damaged or changed."""
    stored = read_json_or_none(path) or {}
    content = stored.get("content")
    return content if isinstance(content, dict) and stored.get("sha256") == hash_of([content]) else None


def with_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """A JSON object and its checksum, for `read_checked`."""
    return {"sha256": hash_of([content]), "content": content}


def write_checked(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its checksum to the cache, atomically.

    Raises:
        UserError: the cache cannot be written.
    """
    with writing_cache(path.parent):
        write_json(path, with_checksum(content))


def hash_of(value: object) -> str:
    """SHA-256 of a value that JSON can represent, in hexadecimal; the order of keys does not matter."""
    return hash_of_bytes(json.dumps(value, sort_keys=True).encode())


def hash_of_bytes(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_of_file(path: Path, cache: Path | None = None) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    The folder ``cache`` remembers the hashes of files over `ALWAYS_HASHED`, by size, inode, and times of modification
    and of change, which no program can set.
    """
    status = path.stat()
    name = str(path.resolve())
    stamp = [status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns]
    memory = cache / _REMEMBERED if cache and status.st_size > ALWAYS_HASHED else None
    remembered = (read_checked(memory) if memory else None) or {}
    if remembered.get(name, [])[:-1] == stamp:
        return str(remembered[name][-1])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if memory:
        with suppress(UserError):  # a read-only cache remembers nothing
            write_checked(memory, {**remembered, name: [*stamp, digest]})
    return digest


@contextmanager
def locked(path: Path, in_use: str | None = None, waiting: str | None = None, timeout: float = 0) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards, against other processes.

    Raises:
        UserError: ``in_use``, if another process still holds it after ``timeout`` seconds; without that message, the
            line ``waiting`` is printed, and the process waits.
        OSError: the lock file cannot be written.
    """
    try:
        lock = acquire(path, timeout)
    except Timeout:
        if in_use is not None:
            raise UserError(in_use) from None
        if waiting is not None:
            print(waiting, flush=True)
        lock = acquire(path)
    try:
        yield
    finally:
        release(lock)


def acquire(path: Path, timeout: float = -1) -> FileLock:
    """A lock that this process holds until `release`; prefer `locked` where a block is enough.

    Raises:
        filelock.Timeout: another process still holds it after ``timeout`` seconds (-1: wait).
        OSError: the lock file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    lock.acquire(timeout=timeout)
    return lock


def release(lock: FileLock) -> None:
    """Release a lock and remove its file."""
    with suppress(OSError):
        Path(lock.lock_file).unlink()  # before the release: afterwards it may be another process's
    lock.release()


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock file."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # its owner may be alive
        return True
    except OSError:  # the disk fails: whoever held it cannot go on, and nobody must wait for that
        return False


def expanded(path: str | Path) -> Path:
    """The path with ``~`` as the home folder; unchanged where there is no such home, as in a shell."""
    return Path(os.path.expanduser(path))


def refuse_lfs_pointer(path: Path, name: str) -> None:
    """Check that a file is not what Git leaves in its place without Git LFS; one that cannot be read passes.

    Raises:
        UserError: it is; the message begins with ``name``.
    """
    with suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            command = f"git -C {shlex.quote(str(path.absolute().parent))} lfs pull"
            raise UserError(f"{name}: a Git LFS pointer, not the file itself; get it with Git LFS installed: {command}")


def cache_root(cache_dir: str | None) -> Path:
    """``data.cache_dir``, else ``$SSA_CACHE_DIR``, else ``~/.cache/ssa``; absolute, not yet created.

    Raises:
        UserError: there is no home folder.
    """
    chosen = cache_dir or os.environ.get("SSA_CACHE_DIR") or "~/.cache/ssa"
    root = expanded(chosen)
    if str(root).startswith("~"):
        raise UserError(f"cache: {chosen}: no home folder; set data.cache_dir or SSA_CACHE_DIR to a writable folder")
    return root.absolute()


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Create a cache folder, and turn every `OSError` in the block into a `UserError`.

    Raises:
        UserError: the folder or a file in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(
            f"cache: cannot write to {error.filename or folder} ({reason}); "
            "set data.cache_dir or SSA_CACHE_DIR to a writable folder with free space"
        ) from error


def check_writable(folder: Path, name: str) -> None:
    """Check that a folder can be created and written to, without leaving anything behind.

    Raises:
        UserError: it cannot be written; the message begins with ``name``, ``KEY=VALUE``.
    """
    with writing(name):
        os.rmdir(tempfile.mkdtemp(dir=_nearest(folder.absolute())))


def check_new_folder(folder: Path, name: str) -> None:
    """Check that a folder is new or empty, and can be written to.

    Raises:
        UserError: it is not empty, is a file, or cannot be written.
    """
    with writing(name):
        used = any(folder.iterdir()) if folder.is_dir() else folder.exists()
    if used:
        raise UserError(f"{name}: exists; valid: a new folder, or an empty one")
    check_writable(folder, name)


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Turn every `OSError` in the block into a `UserError` that begins with ``name``, ``KEY=VALUE``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror or error})") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the file to an `OSError` of the block that names none, as those of a write do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # another library's, of which its message is all there is
            error.filename = error.filename or str(path)
        raise


@contextmanager
def disk_errors() -> Iterator[None]:
    """Turn an `OSError` of the disk, such as that it is full or read-only, into a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise DiskError(f"{error.filename or 'a file'}: {error.strerror}; rerun the command to resume") from error


def _nearest(folder: Path) -> Path:
    """The folder, else its nearest existing parent."""
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return _nearest(folder.parent)
    return folder


def _to_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _to_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_finite(item) for item in value]
    return value


def _to_floats(value: Any, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise RecursionError
    if isinstance(value, dict):
        return {key: _to_floats(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_floats(item, depth + 1) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
