"""The table of runs, one row each: columns and types.  `ssa.record.runs` and `ssa.record.wandb_runs` find the runs."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ssa.config import Config, defaults, upgraded, validated
from ssa.errors import UserError
from ssa.model.config import TemperatureConfig
from ssa.record.run_files import State
from ssa.rule_names import variant

FIXED = ("folder", "experiment", "status", "variant", "error", "damage", "commit", "data_hash")
SECTIONS = {"model", "data", "optim", "trainer", "experiment", "seed"}  # that every config has
_NO_RESULTS = {"run_id"}  # the index
_ADDED = {f"config.{key}": value for key, value in defaults(Config).items()}
_LARGEST_EXACT = 2**53  # integers up to here are exact as floats
_NO_FLOAT = 10**300


@dataclass(frozen=True)
class FoundRun:
    """One run, from a folder or from W&B."""

    run_id: str
    folder: str  # path, or URL at W&B
    status: State
    config: Mapping[str, Any]  # nested plain values
    summary: Mapping[str, Any]  # results of a finished run; {} for others
    evaluations: Mapping[str, Any]  # metrics by column, such as ``eval/perplexity/loss``
    experiment: str
    error: str = ""
    damage: tuple[str, ...] = ()  # files that were changed or removed, one line each
    commit: str = ""
    data_hash: str = ""
    time: str = field(default="", compare=False)  # of the newest status, ISO 8601

    @property
    def variant(self) -> str:
        """What the temperatures scale, such as ``ssa-query``; see `ssa.rule_names.variant`."""
        model = self.config.get("model")
        return _variant(json.dumps(model.get("temperature"))) if isinstance(model, dict) else ""


def table(found: Iterable[FoundRun]) -> pd.DataFrame:
    """One row per run id, sorted by id; ``docs/runs.md`` describes the columns.

    Of several runs with one id, a finished one is kept if possible, then an undamaged one, then the newest.
    """
    best_first = sorted(found, key=lambda run: (run.status == "finished", not run.damage, run.time), reverse=True)
    kept: dict[str, FoundRun] = {}
    for run in best_first:
        kept.setdefault(run.run_id, run)
    runs = [run for _, run in sorted(kept.items())]
    fixed = {name: [_fixed(run, name) for run in runs] for name in FIXED}
    parts = [
        [_settings(run.config) for run in runs],
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


@functools.cache
def _variant(temperature: str) -> str:
    try:
        return variant(validated(TemperatureConfig, upgraded(json.loads(temperature), "model.temperature.")))
    except UserError:  # damaged
        return ""


def _fixed(run: FoundRun, name: str) -> str:
    return "; ".join(run.damage) if name == "damage" else str(getattr(run, name))


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a config; a key that is newer than the run has its default, which is what the run did."""
    return {**_ADDED, **dict(_flat(config, "config."))} if config else {}


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
