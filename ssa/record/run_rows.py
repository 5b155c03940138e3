"""A table with a row a run: which columns a run has, and which types.  `ssa.record.runs` says where runs come from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ssa.record.run_files import State

FIXED = ("folder", "experiment", "status", "error", "damage", "commit", "data_hash")
SECTIONS = {"model", "data", "optim", "trainer", "experiment", "seed"}  # that the config of each run has
_NO_RESULTS = {"run_id"}  # the index
_LARGEST_EXACT = 2**53  # whole numbers up to here are the same as floats
_NO_FLOAT = 10**300


@dataclass(frozen=True)
class FoundRun:
    """One run, from wherever it is kept.

    Attributes:
        run_id: its id.
        folder: its path, or its address at W&B.
        status: where it stands.
        config: nested plain values.
        summary: what summary.json has; {} for a run that has not finished.
        evaluations: metrics by their column, such as ``eval/perplexity/loss``.
        time: of the newest status, ISO 8601; of two finished runs of one id the newer one is kept.
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
    """One row for each run id, in the order of ids; ``docs/runs.md`` describes the columns."""
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
    """Of the runs of an id the finished one, of several the undamaged one, of several the newest."""
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
    """Without what has no value, which W&B does not keep."""
    return {name: value for name, value in values.items() if value is not None}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values by dotted names; a list as JSON, so that it can be compared and grouped by."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, default=str) if isinstance(value, list | tuple) else value


def _column(values: list[Any]) -> pd.Series[Any]:
    """Typed by what the values are, and not by how a file happens to write them: 1 and 1.0 are one number.

    W&B may hand back either for the other.
    """
    present = [value for value in values if value is not None]
    complete = len(present) == len(values)
    if complete and all(isinstance(value, bool) for value in present):
        return pd.Series(values, dtype=bool)
    if not present or not all(map(_is_number, present)):
        return pd.Series(values, dtype=object)
    whole = complete and all(float(value).is_integer() and abs(value) <= _LARGEST_EXACT for value in present)
    return pd.Series([math.nan if value is None else value for value in values], dtype="int64" if whole else "float64")


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < _NO_FLOAT)  # true and false are ints too
