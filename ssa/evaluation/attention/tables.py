"""The tables of the attention report, as Parquet files in ``evaluation/attention/``.

Layers and heads count from 0; entropies are in nats; ``n`` is the number of keys that a token's query sees, itself
among them; ``of`` is what a temperature scales: query, key, value or output.  A temperature that differs by feature
counts as its mean.  The settings and the model that a table is of are in its schema's metadata.

``heads``: layer, head; entropy, entropy_normalized (by log n), spikiness: means over softmax rows; max_logit; dilution:
    slope of entropy in log n; norm: the operator norm of W_q^T W_k / sqrt(d), see `ssa.model.attention_stats`;
    tau_norm: mean over tokens of that norm times the query's temperature.
``positions``: layer, head, n; count: tokens; means of entropy, entropy_normalized (nan at n = 1), spikiness, max_logit.
``norms``: layer, head, percentile (0 to 100); tau_norm: that percentile over tokens.

Only where there are temperatures:

``temperatures``: of, layer, head (of keys and values, their own); mean, std, min, max over tokens; log_n, log_count:
    Pearson's correlation with log n, and with log(1 + frequency) of the token; nan where one of the two is constant.
``temperature_positions``: of, layer, head, n; count: tokens; mean.
``tokens``: of, token (its id), text; frequency: how often in the training text, of a pretrained model in the text at
    hand; count: in the measured batch; mean: of the temperature, over layers and heads.

``norms`` and ``tau_norm`` are left out where the query's temperature differs by feature and so scales no norm.
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

_LISTED, _SEEN = 10, 5  # tokens at either end of a list; each seen so often at least


def tables_of(measured: Measured, decode: Callable[[list[int]], str]) -> Tables:
    """Those that the model has, by name; ``decode`` is the tokenizer's."""
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
    """Of each temperature, the tokens seen often enough whose mean is highest (first), and lowest."""
    rows = tables["tokens"].to_pylist() if "tokens" in tables else []
    often = min(_SEEN, max((row["count"] for row in rows), default=0))  # of a short text, what it has
    rows = sorted((row for row in rows if row["count"] >= often), key=lambda row: -row["mean"])
    of_each: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of_each.setdefault(row.pop("of"), []).append(row)
    return {of: {"highest": found[:_LISTED], "lowest": found[::-1][:_LISTED]} for of, found in of_each.items()}


def write_tables(tables: Tables, folder: Path, of: Mapping[str, Any]) -> list[Path]:
    """Writes ``NAME.parquet``, each whole or not at all; ``of`` goes into their metadata.

    Raises:
        OSError: one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in of.items()}
    paths = {name: folder / f"{name}.parquet" for name in tables}
    for name, path in paths.items():
        with replacing(path) as unfinished:
            pq.write_table(tables[name].replace_schema_metadata(metadata), unfinished)
    return list(paths.values())


def mean_by(values: Array, groups: Array) -> Array:
    """Means over the places of each group from 0 on, none of them empty: (..., N) by (N,) -> (..., groups)."""
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


def _temperatures(measured: Measured, of: str) -> pa.Table:
    tau = measured.temperatures[of]
    columns = {
        "mean": tau.mean(-1, dtype=float),
        "std": tau.std(-1, dtype=float),
        "min": tau.min(-1),
        "max": tau.max(-1),
        "log_n": correlation(tau, measured.log_n),
        "log_count": correlation(tau, measured.log_count),
    }
    return _grid(("layer", "head"), columns)


def _temperature_positions(measured: Measured, of: str) -> pa.Table:
    n, groups, counts = np.unique(measured.n, return_inverse=True, return_counts=True)
    columns: dict[str, Array] = {"count": counts, "mean": mean_by(measured.temperatures[of], groups).astype(np.float32)}
    return _grid(("layer", "head", "n"), columns, n=n)


def _tokens(measured: Measured, of: str, decode: Callable[[list[int]], str]) -> pa.Table:
    tokens, groups, counts = np.unique(measured.tokens, return_inverse=True, return_counts=True)
    columns = {
        "token": tokens,
        "text": [decode([token]) for token in tokens.tolist()],
        "frequency": measured.frequencies[tokens],
        "count": counts,
        "mean": mean_by(measured.temperatures[of].mean((0, 1), dtype=float), groups),
    }
    return pa.table(columns)


def _norms(tau_norms: Array) -> pa.Table:
    percentiles = np.moveaxis(np.percentile(tau_norms, np.arange(101), axis=-1), 0, -1)  # (L, H, 101)
    return _grid(("layer", "head", "percentile"), {"tau_norm": percentiles})


def _grid(axes: tuple[str, ...], columns: dict[str, Array], **labels: Array) -> pa.Table:
    """Arrays of one shape, a row a place in it; the numbers of an axis count from 0 where it has no labels."""
    shape = np.broadcast_shapes(*(values.shape for values in columns.values()))
    places = dict(zip(axes, np.indices(shape).reshape(len(shape), -1), strict=True))
    places |= {name: values[places[name]] for name, values in labels.items()}
    return pa.table(places | {name: np.broadcast_to(values, shape).ravel() for name, values in columns.items()})


def _each(measured: Measured, table: Callable[[str], pa.Table]) -> pa.Table:
    """The tables of all that is scaled, one below the other; the column ``of`` says which."""
    parts = {of: table(of) for of in measured.temperatures}
    return pa.concat_tables(part.add_column(0, "of", [[of] * part.num_rows]) for of, part in parts.items())
