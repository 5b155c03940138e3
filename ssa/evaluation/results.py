"""The files that outcomes are kept in: ``evaluation/<task>.json`` of a run folder.

The newest outcome is the object itself; those of other settings, or of other weights of the run, are below it under
``others``, newest first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssa.errors import UserError
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.task import Metric, Outcome
from ssa.files import read_json, write_json

Result = dict[str, Any]


def file_name(task: str) -> str:
    """A task's name as part of a file's."""
    return re.sub(r"[^\w.,+-]", "_", task)


def find(folder: Path, task: str, identity: Mapping[str, Any], newest: bool = False) -> Result | None:
    """The kept outcome of a task that is of this, which becomes the newest.

    Args:
        folder: ``evaluation/``.
        task: its name.
        identity: all that decides an outcome.
        newest: only if it is the newest already.

    Raises:
        UserError: the file is damaged.
    """
    same = json.loads(json.dumps(identity))
    kept = _kept(folder, task)
    found = next((result for result in (kept[:1] if newest else kept) if _identity(result) == same), None)
    if found is not None and found is not kept[0]:
        keep(folder, found)
    return found


def keep(folder: Path, result: Result) -> None:
    """Puts an outcome first in its file; one of the same settings is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    result = json.loads(json.dumps(result))
    before: list[Result] = []
    with suppress(UserError):  # a damaged file is replaced
        before = _kept(folder, result["task"])
    others = [other for other in before if _identity(other) != _identity(result)]
    write_json(folder / f"{file_name(result['task'])}.json", {**result, "others": others})


def newest(folder: Path, evaluated: EvaluatedModel) -> list[Result]:
    """The newest outcome of each task that is of the evaluated's weights."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with suppress(UserError):
            result = read_json(path)
            if result.get("model", {}).get("weights_hash") == evaluated.weights_hash:
                found.append(result)
    return found


def result_of(
    task: str, identity: Mapping[str, Any], evaluated: EvaluatedModel, outcome: Outcome, seconds: float
) -> Result:
    """An outcome with all that it is of, as plain values."""
    from ssa.device import device_name

    return {
        "task": task,
        "of": evaluated.name,
        "metrics": {name: _plain(metric) for name, metric in outcome.metrics.items()},
        "n": outcome.n,
        "counts": dict(outcome.counts),
        **identity,
        "versions": {**{name: version(name) for name in ("ssa", "torch", "tokenizers")}, **outcome.versions},
        "device": device_name(evaluated.device),
        "seconds": round(seconds, 1),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "details": dict(outcome.details),
    }


def identity_of(settings: Mapping[str, Any], evaluated: EvaluatedModel) -> dict[str, Any]:
    """All that decides an outcome."""
    return {"settings": dict(settings), "model": evaluated.plain}


def _identity(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in ("settings", "model")}


def _plain(metric: Metric) -> dict[str, Any]:
    return {name: value for name, value in vars(metric).items() if value is not None}


def _kept(folder: Path, task: str) -> list[Result]:
    path = folder / f"{file_name(task)}.json"
    if not path.is_file():
        return []
    newest = read_json(path)
    return [{key: value for key, value in newest.items() if key != "others"}, *newest.get("others", [])]
