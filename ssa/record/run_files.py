"""The files of a run folder: how they are written, and read back.  `ssa.record.run_record` says what each one holds.

Every file but metrics.jsonl is replaced as a whole, so that a reader sees the old one or the new one.  metrics.jsonl
only grows, a line a write: a kill can tear its last line, which readers skip and a resumed run cuts off.

JSON has no NaN or infinity.  They are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which
``float()`` takes, and come back as floats from `read_rows` and `read_summary`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml  # type: ignore[import-untyped]

from ssa.atomic import replacing
from ssa.config import Config, parse
from ssa.errors import UserError

State = Literal["running", "finished", "interrupted", "failed"]
Row = dict[str, Any]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Status:
    """Where a run stands.  Times are UTC in ISO 8601; ``step`` is in optimizer steps; ``error`` is one line."""

    status: State
    attempt: int
    started: str
    time: str
    step: int
    pid: int
    host: str
    error: str | None


def load_config(folder: str | Path) -> Config:
    """The config that a run folder was made with.

    Raises:
        UserError: it is not a run folder, or its config.yaml is damaged.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    try:
        return parse(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} is damaged, or of another version: {error}") from None


def load_status(folder: str | Path) -> Status:
    """What status.json says.

    Raises:
        UserError: it is not a run folder, or its status.json is damaged.
    """
    path = Path(folder) / "status.json"
    try:
        status = Status(**read_json(path))
    except TypeError:
        raise UserError(f"{path} is damaged: it has not the fields of a status") from None
    if status.status not in get_args(State):
        raise UserError(f"{path} is damaged: status={status.status}; valid: {', '.join(get_args(State))}")
    return status


def read_rows(folder: str | Path) -> list[Row]:
    """The rows of metrics.jsonl, also while the run goes on; a last line that is not complete is left out.

    Raises:
        UserError: there is no metrics.jsonl, or another line of it is damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no metrics.jsonl")
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_parse(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The run's summary.json.

    Raises:
        UserError: there is none yet, or it is damaged.
    """
    return read_json(Path(folder) / "summary.json")


def read_environment(folder: str | Path) -> dict[str, Any]:
    """What the newest attempt of the run ran on.

    Raises:
        UserError: there is no environment.json, or it is damaged.
    """
    return read_json(Path(folder) / "environment.json")


def check_unchanged(folder: str | Path, config: Config) -> None:
    """Refuses to go on in the folder with a config that would give other numbers.

    Raises:
        UserError: naming what differs, as in ``trainer.steps: 100 -> 200``.
    """
    changes = config_changes(load_config(folder), config)
    if changes:
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise UserError(f"{folder} was made with another config ({shown}): resume it unchanged, or start a new run")


def config_changes(before: Config, after: Config) -> list[str]:
    """What differs between the identities of two configs, each as ``trainer.steps: 100 -> 200``."""
    return list(_differences(before.identity(), after.identity()))


def write_atomic(path: Path, text: str) -> None:
    """Replaces the file as a whole: after a crash it is the old one or the new one."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces a JSON file as a whole."""
    write_atomic(path, to_json(values))


def to_json(values: Mapping[str, Any]) -> str:
    """The text of a JSON file."""
    return json.dumps(_to_finite(values), indent=2, allow_nan=False) + "\n"


def to_line(row: Mapping[str, Any]) -> str:
    """A row as a line of metrics.jsonl."""
    return json.dumps(_to_finite(row), allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file that `write_json` wrote.

    Raises:
        UserError: there is none yet, or it is damaged.
    """
    try:
        return _parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}: not a run folder, or not that far") from None


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        values = _to_floats(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is damaged: it holds no JSON object")
    return values


def _to_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _to_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_finite(item) for item in value]
    return value


def _to_floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _to_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_to_floats(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        was, now = before.get(key, "absent"), after.get(key, "absent")
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}: {_plain(was)} -> {_plain(now)}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):  # a section that is there or not: only what is chosen in it
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items() if item != "none") + "}"
    return value if isinstance(value, str) else json.dumps(value)
