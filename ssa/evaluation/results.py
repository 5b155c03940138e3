"""Saved outcomes: ``evaluation/<task>.json`` in a run folder.

The newest outcome is the top-level object; outcomes of other settings or other weights follow under ``others``, newest
first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssa.device import device_name
from ssa.errors import NotFinite, UserError
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.task import Outcome
from ssa.files import locked, write_json
from ssa.perplexity import OF_TEXT
from ssa.record.run_files import read_evaluation
from ssa.redaction import redact, redacted

Result = dict[str, Any]


def file_name(task: str) -> str:
    """A task's name with only characters that suit a file name."""
    return re.sub(r"[^\w.,+-]", "_", task)


def find(folder: Path, task: str, identity: Mapping[str, Any], newest: bool = False) -> Result | None:
    """The saved outcome with an identity, or None; it becomes the newest.  ``newest`` considers no others."""
    identity = json.loads(json.dumps(identity))
    try:
        saved = _load(folder, task)
    except UserError as error:
        print(f"note: {error}; evaluated again", flush=True)
        return None
    candidates = saved[:1] if newest else saved
    found = next((result for result in candidates if _identity(result) == identity), None)
    if found is not None and not _knows_loss_of_text(found):
        print(f"note: {task}: saved by a version that did not check for lost text; evaluated again", flush=True)
        return None
    if found is not None and found is not saved[0]:
        save(folder, found)
    return found


def save(folder: Path, result: Result) -> None:
    """Save an outcome as the newest in its file, replacing one with the same identity."""
    result, name = json.loads(json.dumps(result)), file_name(result["task"])
    with locked(folder / f".{name}.json.lock"):  # another process may save an outcome of other settings
        saved: list[Result] = []
        with suppress(UserError):  # a damaged file is replaced
            saved = _load(folder, result["task"])
        others = [other for other in saved if _identity(other) != _identity(result)]
        write_json(folder / f"{name}.json", {**result, "others": others})


def newest(folder: Path, evaluated: EvaluatedModel) -> list[Result]:
    """The newest outcome of each task, if it belongs to the model's current weights."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = read_evaluation(path)
        except UserError as error:
            print(f"note: {error}; left out", flush=True)
            continue
        if result.get("model", {}).get("weights_hash") == evaluated.weights_hash:
            found.append(result)
    return found


def result_of(
    task: str, identity: Mapping[str, Any], evaluated: EvaluatedModel, outcome: Outcome, seconds: float
) -> Result:
    """An outcome and its context as plain values."""
    return {
        "task": task,
        "of": redact(evaluated.name),
        "metrics": {
            name: {field: value for field, value in vars(metric).items() if value is not None}
            for name, metric in outcome.metrics.items()
        },
        "n": outcome.n,
        "counts": dict(outcome.counts),
        **identity,
        "versions": {**{name: version(name) for name in ("ssa", "torch", "tokenizers")}, **outcome.versions},
        "device": device_name(evaluated.device),
        "seconds": round(seconds, 1),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "details": dict(outcome.details),
    }


def checked(result: Result) -> Result:
    """The outcome, whose metrics must be numbers; an exponential may overflow to infinity."""
    for name, metric in result["metrics"].items():
        if math.isnan(metric["value"]):
            raise NotFinite(name, metric["value"])
    return result


def identity_of(settings: Mapping[str, Any], evaluated: EvaluatedModel) -> dict[str, Any]:
    """Everything that determines an outcome, without secrets."""
    return dict(redacted({"settings": settings, "model": evaluated.plain}))


def _identity(result: Mapping[str, Any]) -> dict[str, Any]:
    return {key: result.get(key) for key in ("settings", "model")}


def _knows_loss_of_text(result: Result) -> bool:
    """False for an outcome of an earlier version whose measures per word or byte may be of text that was lost."""
    names = {name.rpartition("/")[2].partition(",")[0] for name in result.get("metrics", {})}
    return not names & set(OF_TEXT) or "loss_of_text" in result.get("details", {})


def _load(folder: Path, task: str) -> list[Result]:
    path = folder / f"{file_name(task)}.json"
    if not path.is_file():
        return []
    newest = read_evaluation(path)
    return [newest, *newest.pop("others", [])]
