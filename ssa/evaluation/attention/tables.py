"""Tables of the attention report, as Parquet files in ``evaluation/attention/``.

Layers and heads count from 0; entropies are in nats; ``n`` is the number of keys visible to a token's query, itself
included; ``of`` is what a temperature scales: query, key, value or output.  A temperature that varies by feature enters
as its mean.  The schema's metadata holds the settings and the model.

``heads``: layer, head; entropy, entropy_normalized (by log n), spikiness: means over softmax rows; max_logit; dilution:
    slope of entropy in log n; norm: operator norm of W_q^T W_k / sqrt(d), see `ssa.model.attention_stats`;
    tau_norm: mean over tokens of the norm times the query temperature.
``positions``: layer, head, n; count: tokens; means of entropy, entropy_normalized (nan at n = 1), spikiness, max_logit.
``norms``: layer, head, percentile (0 to 100); tau_norm: that percentile over tokens.

Only for models with temperatures:

``temperatures``: of, layer, head (key-value heads for keys and values); mean, std, min, max over tokens; log_n,
    log_count: Pearson correlation with log n and with log(1 + frequency) of the token; nan if either is constant.
``temperature_positions``: of, layer, head, n; count: tokens; mean.
``tokens``: of, token (id), text; frequency: occurrences in the training text, for a pretrained model in the evaluated
    text; count: occurrences in the batch; mean: temperature, over layers and heads.

``norms`` and ``tau_norm`` are omitted if the query temperature varies by feature, as it then scales no norm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssa.evaluation.attention.measure import Array, Measured, correlation, slope
from ssa.files import replacing

Tables = dict[str, pa.Table]

_LISTED = 10  # tokens at either extreme
_MIN_COUNT = 5  # occurrences that a listed token needs


def tables_of(measured: Measured, decode: Callable[[list[int]], str]) -> Tables:
    """The tables that apply to the model, by name; ``decode`` is the tokenizer's."""
    tables = {"heads": _heads(measured), "positions": _positions(measured)}
    if measured.tau_norms is not None:
        tables["norms"] = _norms(measured.tau_norms)
    if measured.temperatures:
        tables |= {
            "temperatures": _each(measured, partial(_temperatures, measured)),
            "temperature_positions": _each(measured, partial(_temperature_positions, measured)),
            "tokens": _each(measured, partial(_tokens, measured, decode=decode)),
        }
    return tables


def extremes(tables: Tables) -> dict[str, Any]:
    """Tokens with the highest and the lowest mean of each temperature, most extreme first."""
    rows = tables["tokens"].to_pylist() if "tokens" in tables else []
    often = min(_MIN_COUNT, max((row["count"] for row in rows), default=0))  # a short text may have none
    rows = sorted((row for row in rows if row["count"] >= often), key=lambda row: -row["mean"])
    by_scaled: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_scaled.setdefault(row.pop("of"), []).append(row)
    return {
        scaled: {"highest": ranked[:_LISTED], "lowest": ranked[::-1][:_LISTED]} for scaled, ranked in by_scaled.items()
    }


def write_tables(tables: Tables, folder: Path, identity: Mapping[str, Any]) -> list[Path]:
    """Write each table to ``NAME.parquet``, atomically, with ``identity`` as its metadata.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in identity.items()}
    paths = {name: folder / f"{name}.parquet" for name in tables}
    for name, path in paths.items():
        with replacing(path) as unfinished:
            pq.write_table(tables[name].replace_schema_metadata(metadata), unfinished)
    return list(paths.values())


def mean_by(values: Array, groups: Array) -> Array:
    """Means of groups 0, 1, ..., none of them empty: (..., N) by (N,) -> (..., groups)."""
    counts = np.bincount(groups)
    rows = values.reshape(-1, values.shape[-1])
    sums = np.stack([np.bincount(groups, row) for row in rows])
    return np.asarray(sums / counts).reshape(*values.shape[:-1], -1)


def _heads(measured: Measured) -> pa.Table:
    columns = {
        **measured.means,
        "max_logit": measured.rows["max_logit"].max(-1),
        "dilution": slope(measured.rows["entropy"], measured.log_n),
        "norm": measured.norms,
    }
    if measured.tau_norms is not None:
        columns["tau_norm"] = measured.tau_norms.mean(-1)
    return _grid(("layer", "head"), columns)


def _positions(measured: Measured) -> pa.Table:
    n, groups, counts = np.unique(measured.n, return_inverse=True, return_counts=True)
    means = {name: mean_by(values, groups).astype(np.float32) for name, values in measured.rows.items()}
    return _grid(("layer", "head", "n"), {"count": counts, **means}, n=n)


def _temperatures(measured: Measured, scaled: str) -> pa.Table:
    tau = measured.temperatures[scaled]
    columns = {
        "mean": tau.mean(-1, dtype=float),
        "std": tau.std(-1, dtype=float),
        "min": tau.min(-1),
        "max": tau.max(-1),
        "log_n": correlation(tau, measured.log_n),
        "log_count": correlation(tau, measured.log_count),
    }
    return _grid(("layer", "head"), columns)


def _temperature_positions(measured: Measured, scaled: str) -> pa.Table:
    n, groups, counts = np.unique(measured.n, return_inverse=True, return_counts=True)
    columns: dict[str, Array] = {
        "count": counts,
        "mean": mean_by(measured.temperatures[scaled], groups).astype(np.float32),
    }
    return _grid(("layer", "head", "n"), columns, n=n)


def _tokens(measured: Measured, scaled: str, decode: Callable[[list[int]], str]) -> pa.Table:
    tokens, groups, counts = np.unique(measured.tokens, return_inverse=True, return_counts=True)
    columns = {
        "token": tokens,
        "text": [decode([token]) for token in tokens.tolist()],
        "frequency": measured.frequencies[tokens],
        "count": counts,
        "mean": mean_by(measured.temperatures[scaled].mean((0, 1), dtype=float), groups),
    }
    return pa.table(columns)


def _norms(tau_norms: Array) -> pa.Table:
    percentiles = np.moveaxis(np.percentile(tau_norms, np.arange(101), axis=-1), 0, -1)  # (L, H, 101)
    return _grid(("layer", "head", "percentile"), {"tau_norm": percentiles})


def _grid(axes: tuple[str, ...], columns: dict[str, Array], **labels: Array) -> pa.Table:
    """One row per array element; the index along an axis counts from 0 unless ``labels`` has other values."""
    shape = np.broadcast_shapes(*(values.shape for values in columns.values()))
    places = dict(zip(axes, np.indices(shape).reshape(len(shape), -1), strict=True))
    places |= {name: values[places[name]] for name, values in labels.items()}
    return pa.table(places | {name: np.broadcast_to(values, shape).ravel() for name, values in columns.items()})


def _each(measured: Measured, table: Callable[[str], pa.Table]) -> pa.Table:
    """The tables of all temperatures, concatenated; the column ``of`` names what each scales."""
    tables = {scaled: table(scaled) for scaled in measured.temperatures}
    return pa.concat_tables(one.add_column(0, "of", [[scaled] * one.num_rows]) for scaled, one in tables.items())
