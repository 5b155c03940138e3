"""Checksums of a run's files: whoever reads its numbers later sees whether a file was changed or removed since.

``summary.json`` holds them: under ``files``, for each file its SHA-256 and size; under ``sha256``, that of the rest of
the summary.  They find accidents and edits, not forgery: anyone can seal a folder anew.

Not covered are files of W&B's own, hidden files (locks, files half written), and the summary's layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssa.errors import UserError
from ssa.files import hash_of, hash_of_bytes, hash_of_file, locked, read_json, write_json

SUMMARY = "summary.json"
KEYS = ("files", "sha256")  # of the summary, beside its results
NO_CHECKSUMS = "no checksums"
_LARGE = 2**20  # bytes; a larger file is not read again while its size and time are those it was sealed with
_UNCOVERED = {SUMMARY, "wandb", "wandb.json"}


def sealed(folder: Path, values: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """The values of a summary with checksums.

    Args:
        folder: of the run.
        values: as they go into summary.json.
        texts: of files of the folder that are about to be written, by name.
    """
    files = {name: _checksum(folder / name) for name in _files(folder)}
    files |= {name: _checksum_of(text.encode()) for name, text in texts.items()}
    return _with_own({**values, "files": files})


def reseal(folder: Path, since: float) -> None:
    """Takes into a finished run's checksums what an evaluation has written; what was changed before stays found.

    Args:
        folder: of the run; one without checksums stays without.
        since: when the evaluation began, in seconds since the epoch.
    """
    if not (folder / SUMMARY).is_file():
        return
    lock = folder.resolve().with_name(f".{folder.resolve().name}.seal")
    with locked(lock):
        _take_in(folder, since)


def _take_in(folder: Path, since: float) -> None:
    values = read_json(folder / SUMMARY)
    if not set(KEYS) <= set(values) or values["sha256"] != _of_values(values):
        return
    for name in (name for name in _files(folder) if name.startswith("evaluation/")):
        path = folder / name
        is_new = name not in values["files"]  # such as of an evaluation that was killed before it came here
        if is_new or path.stat().st_mtime >= since - 1:  # clocks of files are coarse
            values["files"][name] = _checksum(path)
    write_json(folder / SUMMARY, _with_own(values))


def damage(folder: Path) -> list[str]:
    """What has happened to the files of a run since it finished, a line each; [] where all is as it was.

    An added file is named where it would be read as an evaluation.

    ``no checksums`` of a finished run that was made before there were any.
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
    found += [f"{name} {what}" for name, sum_ in files.items() if (what := _state(folder / name, sum_))]
    outcomes = (f"evaluation/{path.name}" for path in sorted((folder / "evaluation").glob("*.json")))
    return found + [f"{name} added" for name in outcomes if name not in files]  # by hand: evaluations seal theirs


def _state(path: Path, sum_: Any) -> str:
    """What is wrong with a file, or nothing."""
    if not isinstance(sum_, dict):
        return "has no checksum"
    try:
        stat = path.stat()
        if stat.st_size != sum_.get("bytes"):
            return "changed"
        if stat.st_mtime_ns == sum_.get("mtime_ns"):
            return ""
        return "" if _checksum(path)["sha256"] == sum_.get("sha256") else "changed"
    except FileNotFoundError:
        return "removed"
    except (OSError, ValueError):  # a name may have been edited to what is none
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
