"""Checksums of a finished run: they reveal files that were changed or removed later.

``summary.json`` holds the SHA-256 and size of each file under ``files``, and its own SHA-256 under ``sha256``.  They
detect accidents and edits, not forgery.  W&B's files, hidden files (locks, partial writes) and the white space of
summary.json are not covered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ssa.errors import UserError
from ssa.files import hash_of, hash_of_bytes, hash_of_file, locked, read_json, read_json_or_none, write_json

SUMMARY = "summary.json"
KEYS = ("files", "sha256")  # keys of summary.json beside the results
NO_CHECKSUMS = "no checksums"
_LARGE = 2**20  # bytes; a larger file is hashed again only if its size or time has changed
_UNCOVERED = {SUMMARY, "wandb", "wandb.json"}


def with_checksums(
    folder: Path, values: Mapping[str, Any], texts: Mapping[str, str], without: Collection[Path] = ()
) -> dict[str, Any]:
    """The contents of summary.json with checksums of the folder's files and of ``texts``, by name, not yet written.

    ``without``: files and folders that are about to be removed.
    """
    kept = (name for name in _files(folder) if not any((folder / name).is_relative_to(path) for path in without))
    files = {name: _checksum(folder / name) for name in kept}
    files |= {name: _checksum_of(text.encode()) for name, text in texts.items()}
    return _with_own({**values, "files": files})


def evaluations(folder: Path) -> set[str]:
    """The files of all evaluations of a run."""
    return {name for name in _files(folder) if name.startswith("evaluation/")}


def add_evaluations(folder: Path, since: float, before: Collection[str] = ()) -> None:
    """Add the files that an evaluation wrote to the checksums of a finished run, and drop those that it removed.

    Earlier changes stay detectable.  Without checksums, nothing happens.

    Args:
        folder: the run folder.
        since: start of the evaluation, in seconds since the epoch.
        before: `evaluations` at its start.
    """
    if not (folder / SUMMARY).is_file():
        return
    with locked(folder.resolve().with_name(f".{folder.resolve().name}.seal")):
        values = read_json(folder / SUMMARY)
        if not set(KEYS) <= set(values) or values["sha256"] != _of_values(values):
            return
        now = evaluations(folder)
        for name in set(before) - now:
            values["files"].pop(name, None)
        for name in sorted(now):
            path = folder / name
            is_new = name not in values["files"]  # such as that of an evaluation that was killed before this
            if is_new or path.stat().st_mtime >= since - 1:  # file times are coarse
                values["files"][name] = _checksum(path)
        write_json(folder / SUMMARY, _with_own(values))


def verify(folder: Path, *names: str) -> None:
    """Compare files with the checksums of a finished run; a file without one passes.

    Raises:
        UserError: names the first that has changed.
    """
    files = (read_json_or_none(folder / SUMMARY) or {}).get("files")
    known = files if isinstance(files, dict) else {}
    for name in names:
        checksum, path = known.get(name), folder / name
        if isinstance(checksum, dict) and path.is_file() and hash_of_file(path) != checksum.get("sha256"):
            raise UserError(
                f"{path}: damaged, or changed since the run finished, says its checksum: "
                "restore it, or run again with rerun=true"
            )


def verify_summary(folder: Path) -> None:
    """Compare summary.json with its own checksum, if it has one.

    Raises:
        UserError: it is damaged or was changed.
    """
    values = read_json(folder / SUMMARY)
    if values.get("sha256") not in (None, _of_values(values)):
        raise UserError(
            f"{folder / SUMMARY}: damaged, or changed since the run finished: restore it, or use rerun=true"
        )


def damage(folder: Path) -> list[str]:
    """Changes to the files of a run since it finished, one line each.

    Added files are reported only among the evaluations, where they would be read.  A finished run of a version without
    checksums gives ``no checksums``.
    """
    if not (folder / SUMMARY).is_file():
        return []
    try:
        values = read_json(folder / SUMMARY)
    except (UserError, OSError):
        return [f"{SUMMARY} damaged"]
    files = values.get("files")
    if not isinstance(files, dict) or "sha256" not in values:
        return [NO_CHECKSUMS]
    found = [] if values["sha256"] == _of_values(values) else [f"{SUMMARY} changed"]
    found += [f"{name} {what}" for name, checksum in files.items() if (what := _state(folder / name, checksum))]
    results = (f"evaluation/{path.name}" for path in sorted((folder / "evaluation").glob("*.json")))
    return found + [f"{name} added" for name in results if name not in files]  # evaluations add their own checksums


def _state(path: Path, checksum: Any) -> str:
    """The problem with a file, or ``""``."""
    if not isinstance(checksum, dict):
        return "has no checksum"
    try:
        stat = path.stat()
        if stat.st_size != checksum.get("bytes"):
            return "changed"
        if stat.st_mtime_ns == checksum.get("mtime_ns"):
            return ""
        return "" if _checksum(path)["sha256"] == checksum.get("sha256") else "changed"
    except FileNotFoundError:
        return "removed"
    except (OSError, ValueError):  # or the name in the summary is invalid
        return "unreadable"


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] not in _UNCOVERED and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


def _checksum(path: Path) -> dict[str, Any]:
    stat = path.stat()
    if stat.st_size <= _LARGE:
        return _checksum_of(path.read_bytes())
    return {"sha256": hash_of_file(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _checksum_of(content: bytes) -> dict[str, Any]:
    return {"sha256": hash_of_bytes(content), "bytes": len(content)}


def _with_own(values: Mapping[str, Any]) -> dict[str, Any]:
    whole = {**values, "files": dict(sorted(values["files"].items()))}
    return {**whole, "sha256": _of_values(whole)}


def _of_values(values: Mapping[str, Any]) -> str:
    return hash_of({key: value for key, value in values.items() if key != "sha256"})
