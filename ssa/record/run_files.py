"""Readers of the files in a run folder; `ssa.record.run_record` lists and writes them.

Files are written atomically, except metrics.jsonl, which grows by one line per write: after a kill its last line may be
incomplete; readers skip it and a resumed run removes it.

Run folders of older versions are read with the config keys and metric names of this one.

NaN and infinities are stored as strings, see `ssa.files.to_json`, and read as floats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import yaml  # type: ignore[import-untyped]

from ssa.config import Config, parse, upgraded
from ssa.errors import UserError
from ssa.files import parse_json, read_json, refuse_lfs_pointer, to_json

State = Literal["running", "finished", "interrupted", "failed"]
Row = dict[str, Any]

_LINE_START = re.compile(rb'\{"step": (\d+),')  # of a line of metrics.jsonl


@dataclass(frozen=True)
class Status:
    """State of a run.  Times are UTC in ISO 8601; ``step`` is in optimizer steps; ``error`` is one line."""

    status: State
    attempt: int
    started: str
    time: str
    step: int
    pid: int
    host: str
    error: str | None


def load_config(folder: str | Path) -> Config:
    """The config of a run folder.

    Raises:
        UserError: the folder is not a run folder, or its config.yaml is damaged.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml")
    refuse_lfs_pointer(path, str(path))
    try:
        return parse(upgraded(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (yaml.YAMLError, UnicodeDecodeError, UserError) as error:
        raise UserError(f"{path} is damaged, or of another version: {error}") from None


def load_status(folder: str | Path) -> Status:
    """The contents of status.json.

    Raises:
        UserError: the folder is not a run folder, or its status.json is damaged.
    """
    path = Path(folder) / "status.json"
    try:
        status = Status(**_read(folder, "status.json"))
    except TypeError:
        raise UserError(f"{path} is damaged: it does not have the fields of a status") from None
    if status.status not in get_args(State):
        raise UserError(f"{path} is damaged: status={status.status}; valid: {', '.join(get_args(State))}")
    return status


def read_rows(folder: str | Path) -> list[Row]:
    """The rows of metrics.jsonl, also during the run; an incomplete last line is skipped.

    Raises:
        UserError: there is no metrics.jsonl, or another line is damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no metrics.jsonl")
    *lines, _torn = path.read_bytes().split(b"\n")
    return [_row(line, f"{path}, line {number},") for number, line in enumerate(lines, 1)]


def read_rows_until(folder: str | Path, step: int) -> list[Row]:
    """The rows up to an optimizer step; later ones may be damaged.

    Raises:
        UserError: a row up to ``step``, or one that may be, is damaged.
    """
    path = Path(folder) / "metrics.jsonl"
    *lines, _torn = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    rows, is_past = [], False
    for number, line in enumerate(lines, 1):
        try:
            row = _row(line, f"{path}, line {number},")
        except UserError as error:
            begins = _LINE_START.match(line)
            if int(begins[1]) > step if begins else is_past:
                continue
            raise UserError(f"{error}; remove the line to resume without it, or start over with rerun=true") from None
        is_past = row["step"] > step
        if not is_past:
            rows.append(row)
    return rows


def read_summary(folder: str | Path) -> dict[str, Any]:
    """The contents of summary.json, with the metric names of this version.

    Raises:
        UserError: there is none yet, or it is damaged.
    """
    return upgraded_summary(_read(folder, "summary.json"))


def upgraded_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary with the names of this version; in version 0.1, ``best/val/loss`` was called ``val/loss``."""
    is_old = not any(name.startswith("best/") for name in summary)
    return {summary_name(name) if is_old else name: value for name, value in summary.items()}


def summary_name(name: str) -> str:
    """The current name of a metric in a summary of version 0.1: ``best/val/loss`` for ``val/loss``."""
    split, _, metric = name.partition("/")
    if split not in ("val", "test"):
        return name
    return f"reference/{name}" if metric in ("unigram_perplexity", "bigram_perplexity") else f"best/{name}"


def read_environment(folder: str | Path) -> dict[str, Any]:
    """The environment of the newest attempt.

    Raises:
        UserError: there is no environment.json, or it is damaged.
    """
    return _read(folder, "environment.json")


def check_unchanged(folder: str | Path, config: Config) -> None:
    """Refuse to resume a run with a config that would give other numbers.

    Raises:
        UserError: names the differences, as in ``trainer.steps: 100 -> 200``.
    """
    changes = config_changes(load_config(folder), config)
    if changes:
        shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        raise UserError(f"{folder} was made with another config ({shown}): resume it unchanged, or start a new run")


def config_changes(before: Config, after: Config) -> list[str]:
    """The differences between the identities of two configs, each as ``trainer.steps: 100 -> 200``."""
    return list(_differences(before.identity(), after.identity()))


def to_line(row: Mapping[str, Any]) -> str:
    """A row as a line of metrics.jsonl."""
    return to_json(row, indent=None)


def _row(line: bytes, where: str) -> Row:
    row = parse_json(line, where)
    if not isinstance(row.get("step"), int):
        raise UserError(f"{where} is damaged: it has no step")
    return row


def _read(folder: str | Path, name: str) -> dict[str, Any]:
    path = Path(folder) / name
    if not path.is_file():
        raise UserError(f"{folder} has no {name}: not a run folder, or the run has not written it yet")
    return read_json(path)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in dict.fromkeys((*before, *after)):
        was, now = before.get(key, "absent"), after.get(key, "absent")
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from _differences(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}: {_plain(was)} -> {_plain(now)}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):  # a section that only one config has: its settings other than none
        return "{" + ", ".join(f"{key}: {_plain(item)}" for key, item in value.items() if item != "none") + "}"
    return value if isinstance(value, str) else json.dumps(value)
