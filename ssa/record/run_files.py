"""Readers of the files in a run folder; `ssa.record.run_record` lists and writes them.

Files are written atomically, except metrics.jsonl, which grows by one line per write: after a kill its last line may be
incomplete; readers skip it and a resumed run removes it.

Run folders of older versions are read with the config keys and metric names of this one.

NaN and infinities are stored as strings, see `ssa.files.to_json`, and read as floats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssa.config import Config, parse, upgraded
from ssa.config_errors import one_line, shown
from ssa.errors import UserError
from ssa.files import parse_json, read_json, refuse_lfs_pointer, to_json
from ssa.yaml_files import read_yaml

State = Literal["running", "finished", "interrupted", "failed"]
Row = dict[str, Any]
_LARGEST = 2**63

_TEXTS = {"run_id", "status", "experiment", "scale", "model", "size", "temperature", "variant", "init_from", "train"}
_TEXTS |= {"data", "data_hash", "commit", "device", "precision", "attention_backend", "sha256", "error"}
_TEXTS |= {"cpu", "cpu_capability", "torch"}
_NUMBERS = {"seed", "steps", "block_size", "tokens", "best_step", "peak_memory_bytes", "tokens_per_second"}
_NUMBERS |= {"train_seconds", "wall_seconds", "threads"}
_OF_EVERY_RUN = (
    *("run_id", "model", "temperature", "seed", "tokens_per_second", "best_step", "peak_memory_bytes"),
    *("data.validation.tokens", "data.validation.words", "data.validation.bytes"),
    *("reference/val/unigram_perplexity", "reference/val/bigram_perplexity"),
    *("best/val/perplexity", "best/val/attention_entropy"),
)
_NUMBER_PREFIXES = ("best/", "val/", "test/", "reference/", "step_0/", "parameters.", "data.")
_LINE_START = re.compile(rb'\{"step": (\d{1,18}),')  # of a line of metrics.jsonl


class _Checked(BaseModel):
    """Values that a file holds, of the right types; others are kept."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Git(_Checked):
    commit: str | None = None
    dirty: bool = False


class _Environment(_Checked):
    git: _Git | None = None
    machine: dict[str, Any] = {}
    packages: dict[str, Any] = {}
    data_hash: str | None = None
    weights_hash: str | None = None
    precision: str | None = None


class _Metric(_Checked):
    value: float
    low: float | None = None
    high: float | None = None
    stderr: float | None = None


class _Result(_Checked):
    task: str
    metrics: dict[str, _Metric]
    n: int = 0
    counts: dict[str, float] = {}
    settings: dict[str, Any] = {}
    model: dict[str, Any] = {}
    seconds: float = 0.0


class _Results(_Result):
    others: list[_Result] = []


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


class _StatusFile(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    status: State
    attempt: int = Field(ge=1)
    started: str
    time: str
    step: int = Field(ge=0)
    pid: int = Field(ge=1)
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
        return parse(upgraded(read_yaml(path)))
    except UserError as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{path} is damaged, or of another version: {problem}") from None


def load_status(folder: str | Path) -> Status:
    """The contents of status.json.

    Raises:
        UserError: the folder is not a run folder, or its status.json is damaged.
    """
    return Status(**_checked(_StatusFile, _read(folder, "status.json"), Path(folder) / "status.json"))


def read_rows(folder: str | Path) -> list[Row]:
    """The rows of metrics.jsonl, also during the run; an incomplete last line is skipped.

    Raises:
        UserError: there is no metrics.jsonl, or another line is damaged or out of order.
    """
    path = Path(folder) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it has no metrics.jsonl")
    rows: list[Row] = []
    for number, line in enumerate(_lines(path), 1):
        rows.append(_row(line, f"{path}, line {number},", rows))
    return rows


def read_rows_until(folder: str | Path, step: int) -> tuple[list[Row], list[str]]:
    """The rows up to an optimizer step, and what is wrong with others that are, or may be, among them."""
    path = Path(folder) / "metrics.jsonl"
    rows: list[Row] = []
    problems: list[str] = []
    is_past = False
    for number, line in enumerate(_lines(path) if path.is_file() else [], 1):
        try:
            row = _row(line, f"{path}, line {number},", rows)
        except UserError as error:
            begins = _LINE_START.match(line)
            if not (int(begins[1]) > step if begins else is_past):
                problems.append(str(error))
            continue
        is_past = row["step"] > step
        if not is_past:
            rows.append(row)
    return rows, problems


def read_summary(folder: str | Path, complete: bool = False) -> dict[str, Any]:
    """The contents of summary.json, with the metric names of this version.

    Raises:
        UserError: there is none yet, or it is damaged; with ``complete``, or it lacks a value that every run has.
    """
    path = Path(folder) / "summary.json"
    summary = checked_summary(_read(folder, path.name), str(path))
    lacking = next((name for name in _OF_EVERY_RUN if summary.get(name) is None), None)
    if complete and lacking is not None:
        raise UserError(f"{path} is damaged, or of another version: it has no {lacking}")
    return summary


def checked_summary(summary: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A summary with the metric names of this version.

    Raises:
        UserError: a value is of the wrong type; the message begins with ``where``.
    """
    for name, value in summary.items():
        if name in _TEXTS:
            expected, fits = "text", value is None or isinstance(value, str)
        elif name in _NUMBERS or name.startswith(_NUMBER_PREFIXES):
            expected, fits = "a number", value is None or (isinstance(value, int | float) and type(value) is not bool)
        else:
            continue
        if not fits:
            raise UserError(f"{where} is damaged, or of another version: {name}={shown(value)}: expected {expected}")
    return upgraded_summary(summary)


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
    path = Path(folder) / "environment.json"
    return _checked(_Environment, _read(folder, path.name), path)


def read_evaluation(path: Path) -> dict[str, Any]:
    """The outcomes of a task, from ``evaluation/<task>.json``: the newest, and earlier ones under ``others``.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _checked(_Results, read_json(path), path)


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


def _lines(path: Path) -> list[bytes]:
    *lines, _torn = path.read_bytes().split(b"\n")
    return lines


def _row(line: bytes, where: str, before: Sequence[Row]) -> Row:
    """A row, whose step is not below that of the row before."""
    row = parse_json(line, where)
    for name in ("step", "tokens"):
        if type(row.get(name)) is not int or not 0 <= row[name] < _LARGEST:
            raise UserError(f"{where} is damaged: it has no {name}")
    wrong = next((name for name, value in row.items() if not isinstance(value, int | float | None | list)), None)
    if wrong is not None and "/" in wrong:
        raise UserError(f"{where} is damaged: {shown(wrong)}={shown(row[wrong])}: expected a number")
    if before and row["step"] < before[-1]["step"]:
        raise UserError(f"{where} is out of order: step {row['step']} after step {before[-1]['step']}")
    return row


def _checked(kind: type[BaseModel], values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The values, if they are of the right types."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path} is damaged, or of another version: {one_line(error, kind)}") from None
    return values


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
