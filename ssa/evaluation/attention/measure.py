"""Attention measurements on a fixed batch, one value per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ssa.model.attention_stats import attention_metrics, attention_statistics, head_means, query_key_norms
from ssa.model.language_model import LanguageModel

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """Input of a measurement.

    Attributes:
        ids: token ids, (B, T).
        visible_keys: number of visible keys of each token, (B, T); None: all up to it.
        frequencies: occurrences of each vocabulary entry in the training text or a similar one, (V,).
        text_hash: hash of the text.
    """

    ids: Tensor
    visible_keys: Tensor | None
    frequencies: Array
    text_hash: str = ""


@dataclass(frozen=True)
class Measured:
    """Attention measurements.  Shapes: L layers, H heads, K key-value heads, N tokens of the batch, V vocabulary.

    Attributes:
        metrics: the values that validation logs, by metric name.
        means: means over softmax rows, by the names in `ssa.model.attention_stats.MEANS`, (L, H).
        tokens: token ids, (N,).
        n: number of visible keys, in the layers that see most, (N,).
        rows: statistics of softmax rows, by the names in `ssa.model.attention_stats.RowStatistics`, (L, H, N).
        temperatures: query, key, value, output temperatures, (L, H or K, N).
        norms: operator norm of each head's query-key matrix, (L, H); nan if queries or keys are normalized.
        tau_norms: the norms times each token's query temperature, (L, H, N); None if that varies by feature.
        frequencies: as in `Batch`, (V,).
        layers_differ: whether some layers see fewer keys, as with sliding windows.
    """

    metrics: dict[str, float]
    means: dict[str, Array]
    tokens: Array
    n: Array
    rows: dict[str, Array]
    temperatures: dict[str, Array]
    norms: Array
    tau_norms: Array | None
    frequencies: Array
    layers_differ: bool = False

    @property
    def log_n(self) -> Array:
        """Log of the number of visible keys, (N,); nan if layers differ in it."""
        return np.full(len(self.n), np.nan) if self.layers_differ else np.log(self.n)

    @property
    def log_count(self) -> Array:
        """log(1 + frequency) of each token of the batch, (N,)."""
        return np.log1p(self.frequencies[self.tokens])


def measure(model: LanguageModel, batch: Batch, advance: Callable[[int], None] = lambda tokens: None) -> Measured:
    """Measure a model's attention on a batch of B sequences of T tokens; N = B T.

    The model is in evaluation mode, on the batch's device; ``advance`` is called with T after each sequence.
    """
    statistics = attention_statistics(model, batch.ids, batch.visible_keys, advance)
    n = statistics.visible_keys.amax(0)  # (B, T)
    found, query = query_key_norms(model), statistics.temperatures.get("query")
    norms = np.full(statistics.rows.entropy.shape[0:3:2], np.nan) if found is None else found.numpy()
    tau = np.ones((*norms.shape, n.numel())) if query is None else _by_head(query[..., 0])
    return Measured(
        metrics=attention_metrics(statistics),
        means={name: means.double().numpy() for name, means in head_means(statistics).items()},
        tokens=batch.ids.cpu().flatten().numpy(),
        n=n.flatten().numpy(),
        rows={name: _by_head(values) for name, values in statistics.rows._asdict().items()},
        temperatures={name: _by_head(values.mean(-1)) for name, values in statistics.temperatures.items()},
        norms=norms,
        tau_norms=norms[..., None] * abs(tau) if found is not None and (query is None or query.size(-1) == 1) else None,
        frequencies=batch.frequencies,
        layers_differ=bool((statistics.visible_keys != n).any()),
    )


def slope(y: Array, x: Array) -> Array:
    """Least-squares slope, (..., N) over (N,) -> (...); nan where x is constant."""
    centered = x - x.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((y.astype(float) @ centered) / (centered @ centered))


def correlation(y: Array, x: Array) -> Array:
    """Pearson correlation, (..., N) with (N,) -> (...); nan where either is constant."""
    precise = y.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(np.ptp(y, -1) > 0, slope(precise, x) * x.std() / precise.std(-1), np.nan))


def _by_head(values: Tensor) -> Array:
    """(L, B, H, T) -> (L, H, B T)."""
    return np.asarray(values.transpose(1, 2).flatten(2).numpy())
