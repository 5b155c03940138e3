"""Runs as JSON for the page: table columns, thinned curves, config differences."""

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
from ssa.model.config import PROJECTIONS
from ssa.record.checksums import NO_CHECKSUMS
from ssa.record.run_files import Row, read_environment, read_rows
from ssa.record.wandb_names import layer_means
from ssa.redaction import redact, redacted
from ssa.report import variants
from ssa.viz.rule_style import style_of

POINTS = 60  # per curve
DIGITS = 5
CURVES = {  # key of metrics.jsonl, or of the mean over layers: title
    "train/loss": "Training loss, nats per token",
    "val/loss": "Validation loss, nats per token",
    "val/perplexity": "Validation perplexity",
    "val/attention_entropy": "Attention entropy, nats",
    "val/temperature/query": "Query temperature, mean over layers",
    "val/temperature/key": "Key temperature, mean over layers",
    "val/temperature/value": "Value temperature, mean over layers",
    "val/temperature/output": "Output temperature, mean over layers",
}
SHOWN = (  # columns of the table of runs
    "experiment",
    "status",
    "config.model.name",
    "config.model.size",
    "variant",
    "config.seed",
    "best/val/loss",
    "best/val/perplexity",
    "best/val/attention_entropy",
)
BESIDE_CONFIG = ("commit", "data_hash")  # also shown as differences between runs
_HEADS = {  # by layer and head; runs before version 0.3 have no temperatures of heads
    "entropy": re.compile(r"best/val/attention_entropy/layer_(\d+)/head_(\d+)"),
    "query": re.compile(r"best/val/temperature/query/layer_(\d+)/head_(\d+)"),
}
_LAYER = re.compile(r"best/val/temperature/(\w+)/layer_(\d+)/mean")


def page_data(runs: pd.DataFrame) -> dict[str, Any]:
    """Data of the runs for page.js, as plain values.

    Args:
        runs: from `ssa.record.runs.load`.

    Returns:
        ``curves``: titles; ``keys``: config keys; ``common``: the most common value of each, as text or null; ``axes``:
        tokens; ``runs``, each with ``id``, ``shown``, ``folder``, ``damage``, ``error``, ``config``: values other than
        the common ones, by index of the key; ``curves``: axis and values by index of the title; ``unsealed``: whether
        it has no checksums; ``color`` of its rule; ``maps``: entropy and query temperature by layer and head, all
        temperatures by layer and projection; ``projections``: their names; ``variants``: runs that differ in their seed
        alone, with the index of the vanilla ones at the same settings (null for those themselves).
    """
    runs = runs.sort_index()
    keys = [key for key in sorted(runs.columns) if key.startswith("config.") or key in BESIDE_CONFIG]
    columns = [[_text(redacted(value, key)) for value in runs[key].tolist()] for key in keys]
    common = [_most_common(column) for column in columns]
    axes: dict[tuple[int, ...], int] = {}
    shown = [_column(runs, key) for key in SHOWN]
    colors = [style_of(str(variant)).color for variant in _column(runs, "variant")]
    details = [_column(runs, key) for key in ("folder", "damage", "error")]
    maps = {**{name: _by_head(runs, key) for name, key in _HEADS.items()}, "temperature": _by_layer(runs)}
    plain = []
    for number, run_id in enumerate(runs.index):
        folder, damage, error = (_text(column[number]) or "" for column in details)
        unsealed = damage == NO_CHECKSUMS
        damage = "" if unsealed else damage
        curves, problem = _curves(folder, axes)
        plain.append({
            "id": str(run_id),
            "shown": [_shown(column[number]) for column in shown],
            "folder": folder,
            "damage": damage if "metrics.jsonl" in damage else "; ".join(filter(None, [damage, problem])),
            "unsealed": unsealed,
            "error": redact(error),
            "config": {key: column[number] for key, column in enumerate(columns) if column[number] != common[key]},
            "curves": curves,
            "color": colors[number],
            "maps": {name: of_run[number] for name, of_run in maps.items() if of_run[number]},
        })  # fmt: skip
    return {
        "curves": list(CURVES.values()),
        "keys": [key.removeprefix("config.") for key in keys],
        "common": common,
        "axes": list(axes),
        "projections": list(PROJECTIONS),
        "variants": _variants(runs),
        "runs": plain,
    }


def _variants(runs: pd.DataFrame) -> list[dict[str, Any]]:
    """Each with the indices of its runs by seed; those with several seeds have names."""
    found, places = variants.variants(runs), {run_id: number for number, run_id in enumerate(runs.index)}
    several = [one for one in found if len(one.runs) > 1]
    names = dict(zip(map(id, several), variants.labels(several), strict=True))
    indices = {id(one): number for number, one in enumerate(found)}
    return [
        {
            "name": names.get(id(one), ""),
            "color": style_of(str(runs.at[next(iter(one.runs.values())), "variant"])).color,
            "runs": {seed: places[run_id] for seed, run_id in one.runs.items()},
            "base": None if base is None or base is one else indices[id(base)],
        }
        for one, base in zip(found, variants.bases(found), strict=True)
    ]


def _by_head(runs: pd.DataFrame, named: re.Pattern[str]) -> list[list[list[float | None]]]:
    """A statistic of each run's best weights by layer and head; empty where it has none."""
    places = {(int(found[1]), int(found[2])): key for key in runs.columns if (found := named.fullmatch(key))}
    layers, heads = ({place[at] for place in places} for at in (0, 1))
    rows = [[_values(runs, places.get((layer, head))) for head in sorted(heads)] for layer in sorted(layers)]
    return [_matrix([[column[number] for column in row] for row in rows]) for number in range(len(runs))]


def _by_layer(runs: pd.DataFrame) -> list[list[list[float | None]]]:
    """Mean temperature of each run's best weights by layer and projection; empty where it has none."""
    places = {(int(found[2]), found[1]): key for key in runs.columns if (found := _LAYER.fullmatch(key))}
    layers = sorted({layer for layer, _ in places})
    rows = [[_values(runs, places.get((layer, name))) for name in PROJECTIONS] for layer in layers]
    return [_matrix([[column[number] for column in row] for row in rows]) for number in range(len(runs))]


def _values(runs: pd.DataFrame, key: str | None) -> list[float]:
    values = _column(runs, key or "")
    return [float(value) if isinstance(value, int | float) else math.nan for value in values]


def _matrix(rows: list[list[float]]) -> list[list[float | None]]:
    """Without the layers and heads that a smaller model does not have."""
    rounded = [[_rounded(value) for value in row] for row in rows if any(map(math.isfinite, row))]
    width = max((place + 1 for row in rounded for place, value in enumerate(row) if value is not None), default=0)
    return [row[:width] for row in rounded]


def environments(runs: pd.DataFrame) -> list[tuple[dict[str, str], int]]:
    """Environments of the runs with the number of runs each, most frequent first."""
    commits = _column(runs, "commit")
    counts: Counter[tuple[tuple[str, str], ...]] = Counter()
    for folder, commit in zip(_column(runs, "folder"), commits, strict=True):
        counts[tuple(_environment(str(folder), _text(commit)).items())] += 1
    return [(dict(facts), n) for facts, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]


def _environment(folder: str, commit: str | None) -> dict[str, str]:
    try:
        facts = read_environment(folder)
    except (UserError, OSError):  # reported as damage, or the run is on another machine
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
    """Axis and values of each curve of the run, and the error if its rows cannot be read."""
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
            raise UserError("metrics.jsonl is damaged: a row has no tokens")
        for key, value in {**row, **layer_means(row)}.items():
            if key in CURVES and isinstance(value, int | float):
                points[key].append((tokens, _rounded(value)))
    return points


def _thinned(points: Sequence[tuple[int, float | None]]) -> Sequence[tuple[int, float | None]]:
    """At most `POINTS` measured points, evenly spaced, including the first and the last."""
    if len(points) <= POINTS:
        return points
    return [points[round(number * (len(points) - 1) / (POINTS - 1))] for number in range(POINTS)]


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _column(runs: pd.DataFrame, key: str) -> list[Any]:
    return list(runs[key].tolist()) if key in runs.columns else [math.nan] * len(runs)


def _shown(value: Any) -> str | float | int | None:
    """Numbers stay numbers, so that columns sort by them."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else _rounded(value)
    return value if isinstance(value, int | None) else str(value)


def _text(value: Any) -> str | None:
    """A value as in YAML; None both for null and for a missing key, which the table of runs does not distinguish."""
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
