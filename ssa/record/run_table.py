"""The table of runs, one row each: columns and types.  `ssa.record.runs` and `ssa.record.wandb_runs` find the runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ssa.record.run_files import State

FIXED = ("folder", "experiment", "status", "error", "damage", "commit", "data_hash")
SECTIONS = {"model", "data", "optim", "trainer", "experiment", "seed"}  # that every config has
_NO_RESULTS = {"run_id"}  # the index
_LARGEST_EXACT = 2**53  # integers up to here are exact as floats
_NO_FLOAT = 10**300


@dataclass(frozen=True)
class FoundRun:
    """One run, from a folder or from W&B.

    Attributes:
        run_id: its id.
        folder: its path, or its URL at W&B.
        status: its state.
        config: nested plain values.
        summary: results of a finished run; {} for others.
        evaluations: metrics by column, such as ``eval/perplexity/loss``.
        damage: files that were changed or removed, one line each.
        time: of the newest status, ISO 8601; the newer of two finished runs with one id is kept.
    """

    run_id: str
    folder: str
    status: State
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    evaluations: Mapping[str, Any]
    experiment: str
    error: str = ""
    damage: tuple[str, ...] = ()
    commit: str = ""
    data_hash: str = ""
    time: str = field(default="", compare=False)


def table(found: Iterable[FoundRun]) -> pd.DataFrame:
    """One row per run id, sorted by id; ``docs/runs.md`` describes the columns."""
    runs = [run for _, run in sorted(_one_each(found).items())]
    fixed = {name: [_fixed(run, name) for run in runs] for name in FIXED}
    parts = [
        [dict(_flat(run.config, "config.")) for run in runs],
        [_known(dict(_flat(run.summary))) for run in runs],
        [_known(run.evaluations) for run in runs],
    ]
    columns = {name: pd.Series(values, dtype=object) for name, values in fixed.items()}
    for rows in parts:
        for name in sorted({name for row in rows for name in row} - {*FIXED, *_NO_RESULTS}):
            columns[name] = _column([row.get(name) for row in rows])
    made = pd.DataFrame(columns)
    made.index = pd.Index([run.run_id for run in runs], name="run_id", dtype=object)
    return made


def _one_each(found: Iterable[FoundRun]) -> dict[str, FoundRun]:
    """One run per id: a finished one if possible, then an undamaged one, then the newest."""
    kept: dict[str, FoundRun] = {}
    for run in found:
        if run.run_id not in kept or _worth(run) > _worth(kept[run.run_id]):
            kept[run.run_id] = run
    return kept


def _worth(run: FoundRun) -> tuple[bool, bool, str]:
    return run.status == "finished", not run.damage, run.time


def _fixed(run: FoundRun, name: str) -> str:
    return "; ".join(run.damage) if name == "damage" else str(getattr(run, name))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without None, which W&B does not keep."""
    return {name: value for name, value in values.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under dotted names; lists as JSON, so that they can be compared and grouped."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str) if isinstance(value, list | tuple) else value


def _column(values: list[Any]) -> pd.Series[Any]:
    """A column typed by its values: 1 and 1.0 are the same number, since W&B may return either for the other."""
    present = [value for value in values if value is not None]
    complete = len(present) == len(values)
    if complete and all(isinstance(value, bool) for value in present):
        return pd.Series(values, dtype=bool)
    if not present or not all(map(_is_number, present)):
        return pd.Series(values, dtype=object)
    whole = complete and all(float(value).is_integer() and abs(value) <= _LARGEST_EXACT for value in present)
    return pd.Series([math.nan if value is None else value for value in values], dtype="int64" if whole else "float64")


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < _NO_FLOAT)  # bool is a subclass of int
