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
    tables = {"heads": _heads(measured), "positions": _by_n(measured.n, measured.rows)}
    if measured.tau_norms is not None:
        percentiles = np.moveaxis(np.percentile(measured.tau_norms, np.arange(101), axis=-1), 0, -1)  # (L, H, 101)
        tables["norms"] = _grid(("layer", "head", "percentile"), {"tau_norm": percentiles})
    if taus := measured.temperatures:
        tables |= {
            "temperatures": _each(taus, lambda tau: _temperatures(measured, tau)),
            "temperature_positions": _each(taus, lambda tau: _by_n(measured.n, {"mean": tau})),
            "tokens": _each(taus, lambda tau: _tokens(measured, tau, decode)),
        }
    return tables


def extremes(tables: Tables) -> dict[str, Any]:
    """Tokens with the highest and the lowest mean of each temperature, most extreme first."""
    if "tokens" not in tables:
        return {}
    tokens = tables["tokens"].to_pandas()
    often = tokens["count"] >= min(_MIN_COUNT, tokens["count"].max())  # a short text may have no frequent token
    by_scaled = tokens[often].sort_values("mean", ascending=False, kind="stable").groupby("of", sort=False)
    rows = {scaled: ranked.drop(columns="of").to_dict("records") for scaled, ranked in by_scaled}
    return {scaled: {"highest": ranked[:_LISTED], "lowest": ranked[::-1][:_LISTED]} for scaled, ranked in rows.items()}


def write_tables(tables: Tables, folder: Path, identity: Mapping[str, Any]) -> list[Path]:
    """Write each table to ``NAME.parquet``, atomically, with ``identity`` as its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {key: json.dumps(value, sort_keys=True) for key, value in identity.items()}
    paths = [folder / f"{name}.parquet" for name in tables]
    for path, table in zip(paths, tables.values(), strict=True):
        with replacing(path) as unfinished:
            pq.write_table(table.replace_schema_metadata(metadata), unfinished)
    return paths


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


def _by_n(visible: Array, values: Mapping[str, Array]) -> pa.Table:
    """Means over the tokens with the same number of visible keys, (L, H, N) -> (L, H, distinct n)."""
    n, groups, counts = np.unique(visible, return_inverse=True, return_counts=True)
    means = {name: mean_by(some, groups).astype(np.float32) for name, some in values.items()}
    return _grid(("layer", "head", "n"), {"count": counts, **means}, n=n)


def _temperatures(measured: Measured, tau: Array) -> pa.Table:
    columns = {
        "mean": tau.mean(-1, dtype=float),
        "std": tau.std(-1, dtype=float),
        "min": tau.min(-1),
        "max": tau.max(-1),
        "log_n": correlation(tau, measured.log_n),
        "log_count": correlation(tau, measured.log_count),
    }
    return _grid(("layer", "head"), columns)


def _tokens(measured: Measured, tau: Array, decode: Callable[[list[int]], str]) -> pa.Table:
    tokens, groups, counts = np.unique(measured.tokens, return_inverse=True, return_counts=True)
    columns = {
        "token": tokens,
        "text": [decode([token]) for token in tokens.tolist()],
        "frequency": measured.frequencies[tokens],
        "count": counts,
        "mean": mean_by(tau.mean((0, 1), dtype=float), groups),
    }
    return pa.table(columns)


def _grid(axes: tuple[str, ...], columns: dict[str, Array], **labels: Array) -> pa.Table:
    """One row per array element; the index along an axis counts from 0 unless ``labels`` has other values."""
    shape = np.broadcast_shapes(*(values.shape for values in columns.values()))
    places = dict(zip(axes, np.indices(shape).reshape(len(shape), -1), strict=True))
    places |= {name: values[places[name]] for name, values in labels.items()}
    return pa.table(places | {name: np.broadcast_to(values, shape).ravel() for name, values in columns.items()})


def _each(temperatures: Mapping[str, Array], table: Callable[[Array], pa.Table]) -> pa.Table:
    """The tables of all temperatures, concatenated; the column ``of`` names what each scales."""
    tables = {scaled: table(tau) for scaled, tau in temperatures.items()}
    return pa.concat_tables(one.add_column(0, "of", [[scaled] * one.num_rows]) for scaled, one in tables.items())
