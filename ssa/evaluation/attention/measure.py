"""What attention does on a fixed batch, a number a token: what the attention report is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

    from ssa.model.transformer import Transformer

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Batch:
    """What is measured.

    Attributes:
        ids: B windows of T tokens.
        visible: how many tokens each sees, (B, T); None: all before it.
        frequencies: how often each token of the vocabulary occurs in the training text, or one like it, (V,).
        text_hash: of the text that the windows are from.
    """

    ids: Tensor
    visible: Tensor | None
    frequencies: Array
    text_hash: str = ""


@dataclass(frozen=True)
class Measured:
    """What attention did.  Letters: L layers, H heads, K key-value heads, N tokens of the batch, V vocabulary.

    Attributes:
        metrics: the numbers that a validation logs, by metric name.
        means: over rows, by the names of `ssa.model.attention_stats.MEANS`, (L, H).
        tokens: ids, (N,).
        n: keys in sight of each, (N,).
        rows: by the names of `ssa.model.attention_stats.RowStatistics`, (L, H, N).
        temperatures: by what they scale, (L, H or K, N).
        norms: of each head's query-key matrix, (L, H).
        tau_norms: times each token's query temperature, (L, H, N); None where that differs by feature.
        frequencies: of each token of the vocabulary, (V,).
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

    @property
    def log_n(self) -> Array:
        """(N,)."""
        return np.log(self.n)

    @property
    def log_count(self) -> Array:
        """log(1 + frequency) of each token of the batch, (N,)."""
        return np.log1p(self.frequencies[self.tokens])


def measure(model: Transformer, batch: Batch, advance: Callable[[int], None] = lambda tokens: None) -> Measured:
    """Runs a model over a batch, in the precision at hand.

    Args:
        model: in evaluation mode, where the batch is.
        batch: B sequences of T tokens; N = B T.
        advance: called with T after each sequence.
    """
    import torch

    from ssa.model.attention_stats import attention_metrics, attention_statistics, head_means, query_key_norms

    statistics = attention_statistics(model, batch.ids, batch.visible, advance)
    n = torch.arange(1, batch.ids.size(1) + 1).expand(batch.ids.shape) if batch.visible is None else batch.visible.cpu()
    norms, query = query_key_norms(model).numpy(), statistics.temperatures.get("query")
    tau = np.ones((*norms.shape, n.numel())) if query is None else _by_head(query[..., 0])
    return Measured(
        metrics=attention_metrics(statistics),
        means={name: means.double().numpy() for name, means in head_means(statistics).items()},
        tokens=batch.ids.cpu().flatten().numpy(),
        n=n.flatten().numpy(),
        rows={name: _by_head(values) for name, values in statistics.rows._asdict().items()},
        temperatures={of: _by_head(values.mean(-1)) for of, values in statistics.temperatures.items()},
        norms=norms,
        tau_norms=norms[..., None] * abs(tau) if query is None or query.size(-1) == 1 else None,
        frequencies=batch.frequencies,
    )


def slope(y: Array, x: Array) -> Array:
    """Of the least-squares line through points, (..., N) over (N,) -> (...); nan where x is constant."""
    centered = x - x.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((y.astype(float) @ centered) / (centered @ centered))


def correlation(y: Array, x: Array) -> Array:
    """Pearson's, (..., N) with (N,) -> (...); nan where one of the two is constant."""
    precise = y.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(np.ptp(y, -1) > 0, slope(precise, x) * x.std() / precise.std(-1), np.nan))


def _by_head(values: Tensor) -> Array:
    """(L, B, H, T) -> (L, H, B T)."""
    return np.asarray(values.transpose(1, 2).flatten(2).numpy())
