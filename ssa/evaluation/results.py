"""The files that outcomes are kept in: ``evaluation/<task>.json`` of a run folder.

The newest outcome is the object itself; those of other settings, or of other weights of the run, are below it under
``others``, newest first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ssa.evaluation.subject import Subject
from ssa.evaluation.task import Metric, Outcome
from ssa.record.run_files import read_json, write_json

Result = dict[str, Any]


def find(folder: Path, task: str, identity: Mapping[str, Any]) -> Result | None:
    """The kept outcome of a task with these settings, of these weights.

    Raises:
        UserError: the file is damaged.
    """
    same = json.loads(json.dumps(identity))
    return next((result for result in _kept(folder, task) if _identity(result) == same), None)


def keep(folder: Path, result: Result) -> None:
    """Puts an outcome first in its file; one of the same settings is replaced.

    Raises:
        UserError: the file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(result))
    others = [other for other in _kept(folder, result["task"]) if _identity(other) != _identity(result)]
    write_json(folder / f"{result['task']}.json", {**result, "others": others})


def result_of(task: str, settings: Mapping[str, Any], subject: Subject, outcome: Outcome, seconds: float) -> Result:
    """An outcome with all that it is of, as plain values."""
    from importlib.metadata import version

    from ssa.device import device_name

    return {
        "task": task,
        "metrics": {name: _plain(metric) for name, metric in outcome.metrics.items()},
        "n": outcome.n,
        "counts": dict(outcome.counts),
        "settings": dict(settings),
        "model": {"name": subject.name, **subject.plain},
        "versions": {**{name: version(name) for name in ("ssa", "torch", "tokenizers")}, **outcome.versions},
        "device": device_name(subject.device),
        "seconds": round(seconds, 1),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "details": dict(outcome.details),
    }


def identity_of(settings: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """All that decides an outcome."""
    return {"settings": dict(settings), "model": {"name": subject.name, **subject.plain}}


def _identity(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in ("settings", "model")}


def _plain(metric: Metric) -> dict[str, Any]:
    return {name: value for name, value in vars(metric).items() if value is not None}


def _kept(folder: Path, task: str) -> list[Result]:
    path = folder / f"{task}.json"
    if not path.is_file():
        return []
    newest = read_json(path)
    return [{key: value for key, value in newest.items() if key != "others"}, *newest.get("others", [])]
