"""Runs as the page draws them: what its table shows, curves of a few points, configs by what sets them apart."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ssa.errors import UserError
from ssa.record.checksums import NO_CHECKSUMS
from ssa.record.run_files import Row, read_environment, read_rows

POINTS = 60  # of a curve
DIGITS = 5
CURVES = {  # key of metrics.jsonl, or of the mean over layers: title
    "train/loss": "Training loss, nats a token",
    "val/loss": "Validation loss, nats a token",
    "val/perplexity": "Validation perplexity",
    "val/attention_entropy": "Attention entropy, nats",
    "val/temperature/query": "Query temperature, mean over layers",
    "val/temperature/key": "Key temperature, mean over layers",
    "val/temperature/value": "Value temperature, mean over layers",
    "val/temperature/output": "Output temperature, mean over layers",
}
SHOWN = (  # columns of the store in the page's table
    "experiment",
    "status",
    "config.model.name",
    "config.model.size",
    "config.model.temperature.name",
    "config.seed",
    "val/loss",
    "val/perplexity",
    "val/attention_entropy",
)
BESIDE_CONFIG = ("commit", "data_hash")  # what also sets two runs apart
_LAYER_MEAN = re.compile(r"(val/temperature/\w+)/layer_\d+/mean")


def page_data(runs: pd.DataFrame) -> dict[str, Any]:
    """All that the page's program needs of the runs, as JSON can hold it.

    Args:
        runs: of `ssa.record.runs.load`.

    Returns:
        ``curves`` titles; ``keys`` of the configs and their most ``common`` values, as text or null;
        ``axes`` of tokens; ``runs``, each with ``id``, ``shown``, ``folder``, ``damage``, ``error``, ``config``: its
        values that are not the common ones, by number of the key; ``curves``: axis and values by number of the title;
        ``unsealed``: whether nothing says that its files are as they were.
    """
    runs = runs.sort_index()
    keys = [key for key in sorted(runs.columns) if key.startswith("config.") or key in BESIDE_CONFIG]
    columns = [[_text(value) for value in runs[key].tolist()] for key in keys]
    common = [_most_common(column) for column in columns]
    axes: dict[tuple[int, ...], int] = {}
    shown = [_column(runs, key) for key in SHOWN]
    told = [_column(runs, key) for key in ("folder", "damage", "error")]
    plain = []
    for number, run_id in enumerate(runs.index):
        folder, damage, error = (_text(column[number]) or "" for column in told)
        unsealed = damage == NO_CHECKSUMS
        damage = "" if unsealed else damage
        curves, problem = _curves(folder, axes)
        plain.append({
            "id": str(run_id),
            "shown": [_shown(column[number]) for column in shown],
            "folder": folder,
            "damage": damage if "metrics.jsonl" in damage else "; ".join(filter(None, [damage, problem])),
            "unsealed": unsealed,
            "error": error,
            "config": {key: column[number] for key, column in enumerate(columns) if column[number] != common[key]},
            "curves": curves,
        })  # fmt: skip
    names = [key.removeprefix("config.") for key in keys]
    return {"curves": list(CURVES.values()), "keys": names, "common": common, "axes": list(axes), "runs": plain}


def environments(runs: pd.DataFrame) -> list[tuple[dict[str, str], int]]:
    """What runs ran on, and how many each; the most frequent first."""
    commits = _column(runs, "commit")
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    for folder, commit in zip(_column(runs, "folder"), commits, strict=True):
        counts[tuple(_environment(str(folder), _text(commit)).items())] += 1
    return [(dict(facts), n) for facts, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]


def _environment(folder: str, commit: str | None) -> dict[str, str]:
    try:
        facts = read_environment(folder)
    except (UserError, OSError):  # the run's damage says so, or it is not on this machine
        facts = {}
    parts = (facts.get(key) for key in ("machine", "packages", "git"))
    machine, packages, git = (part if isinstance(part, dict) else {} for part in parts)
    commit = str(git.get("commit") or commit or "unknown")[:12]
    return {
        "Python": str(facts.get("python", "unknown")),
        "torch": str(packages.get("torch", "unknown")),
        "device": str(facts.get("device", "unknown")),
        "processor": f"{machine.get('cpu', 'unknown')}, {machine.get('cores', '?')} cores" if machine else "unknown",
        "precision": str(facts.get("precision", "unknown")),
        "commit": commit + (" and changes" if git.get("dirty") else ""),
    }


def _curves(folder: str, axes: dict[tuple[int, ...], int]) -> tuple[dict[int, list[Any]], str]:
    """Axis and values of each curve that the run has, and what is wrong with its rows."""
    try:
        rows = read_rows(folder) if Path(folder, "metrics.jsonl").exists() else []
        points = _points(rows)
    except (UserError, OSError) as error:
        return {}, str(error).removeprefix(f"{folder}/")
    except OverflowError:
        return {}, "metrics.jsonl is damaged: a number too large for a float"
    curves: dict[int, list[Any]] = {}
    for number, key in enumerate(CURVES):
        if key in points:
            tokens, values = zip(*_thinned(points[key]), strict=True)
            curves[number] = [axes.setdefault(tokens, len(axes)), list(values)]
    return curves, ""


def _points(rows: Sequence[Row]) -> dict[str, list[tuple[int, float | None]]]:
    points: dict[str, list[tuple[int, float | None]]] = defaultdict(list)
    for row in rows:
        tokens = row.get("tokens")
        if not isinstance(tokens, int):
            raise UserError("metrics.jsonl is damaged: a row without tokens")
        layers: dict[str, list[float]] = defaultdict(list)
        for key, value in row.items():
            if not isinstance(value, int | float):
                continue
            if key in CURVES:
                points[key].append((tokens, _rounded(value)))
            elif key.endswith("/mean") and (match := _LAYER_MEAN.fullmatch(key)) and match[1] in CURVES:
                layers[match[1]].append(value)
        for key, values in layers.items():
            points[key].append((tokens, _rounded(sum(values) / len(values))))
    return points


def _thinned(points: Sequence[tuple[int, float | None]]) -> Sequence[tuple[int, float | None]]:
    """At most `POINTS` of them, evenly spaced, with the first and the last; each is one that was measured."""
    if len(points) <= POINTS:
        return points
    return [points[round(number * (len(points) - 1) / (POINTS - 1))] for number in range(POINTS)]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _column(runs: pd.DataFrame, key: str) -> list[Any]:
    return list(runs[key].tolist()) if key in runs.columns else [math.nan] * len(runs)


def _shown(value: Any) -> str | float | int | None:
    """For the page's table: a number stays one, so that it can be sorted by."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else _rounded(value)
    return value if isinstance(value, int | None) else str(value)


def _text(value: Any) -> str | None:
    """A value as YAML has it; None for null and where a run has no such key, which the store does not tell apart."""
    if isinstance(value, str | None):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return json.dumps(value, default=str)


def _most_common(values: Sequence[str | None]) -> str | None:
    counts: Mapping[str | None, int] = Counter(values)
    return max(counts, key=lambda value: (counts[value], value or ""), default=None)
