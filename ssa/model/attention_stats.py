"""Entropy, spikiness, temperatures and weight norms of causal attention: exact, in O(T) memory.

For a softmax row p over the n keys that a query sees, from its logits s (arXiv 2411.12892, section 2):

    entropy     H = lse(s) - sum_j p_j s_j          nats; at most log n
    normalized  H / log n                           0 (one key) to 1 (uniform); undefined at n = 1, left out of means
    spikiness   1 / (n sum_j p_j^2)                 share of the n keys effectively attended to; lower is spikier
    max logit   max_j s_j

Rows are processed in chunks, so that no T x T map is ever held in memory.  Letters: B batch, H heads, K key-value
heads, T tokens, d head_dim, D d_model, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ssa.model.attention import AttentionInputs, Observer, causal_mask
from ssa.model.language_model import LanguageModel

CHUNK_ELEMENTS = 2**21  # logits in memory
MEANS = ("entropy", "entropy_normalized", "spikiness")  # statistics whose mean over rows is reported


class RowStatistics(NamedTuple):
    """Statistics of each softmax row, float32, (B, H, T)."""

    entropy: Tensor
    entropy_normalized: Tensor  # nan where one key is visible
    spikiness: Tensor
    max_logit: Tensor


class AttentionStatistics(NamedTuple):
    """Softmax rows and temperatures of a batch, float32, on the CPU."""

    rows: RowStatistics  # (L, B, H, T)
    temperatures: dict[str, Tensor]  # by projection, (L, B, H or K, T, 1 or d)
    visible_keys: Tensor  # n of each query, (L, B, T)


@torch.no_grad()
def row_statistics(
    query: Tensor,
    key: Tensor,
    visible_keys: Tensor | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
    softcap: float | None = None,
) -> RowStatistics:
    """Statistics of the causal softmax over ``query . key / sqrt(d)``.

    Args:
        query: (B, H, T, d), scaled by its temperature.
        key: (B, K, T, d), scaled by its temperature; K divides H (grouped-query attention).
        visible_keys: n, the number of keys each query sees: its own and the n - 1 before it, (T,) or (B, T); by default
            all before it.
        chunk_elements: largest number of logits in memory, at least one row of all heads.
        softcap: c, if the logits s become ``c tanh(s / c)``.
    """
    batch, heads, length, head_dim = query.shape
    query, key = query.float() * head_dim**-0.5, key.float().repeat_interleave(heads // key.size(1), dim=1)
    if visible_keys is None:
        visible_keys = torch.arange(1, length + 1, device=query.device)
    rows = max(1, chunk_elements // (batch * heads * length))
    chunks = [
        _chunk(query[:, :, i : i + rows], key, visible_keys[..., i : i + rows], i, softcap)
        for i in range(0, length, rows)
    ]
    return RowStatistics(*(torch.cat(parts, dim=-1) for parts in zip(*chunks, strict=True)))


def _chunk(query: Tensor, key: Tensor, visible_keys: Tensor, start: int, softcap: float | None) -> RowStatistics:
    """Rows ``start`` to ``start + R`` against the keys up to the last of them: (B, H, R, d), (B, H, T, d)."""
    stop = start + query.size(2)
    n = visible_keys.reshape(-1, 1, visible_keys.size(-1))  # (1 or B, 1, R)
    hidden = ~causal_mask(visible_keys, stop)  # (1 or B, 1, R, stop)
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key[:, :, :stop].transpose(-1, -2)  # (B, H, R, stop)
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    logits = logits.masked_fill_(hidden, -torch.inf)
    max_logit = logits.amax(-1)
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill_(hidden, 0)).sum(-1)
    spikiness = 1 / (n * p.square().sum(-1))
    normalized = torch.where(n > 1, entropy / n.log(), torch.nan)
    return RowStatistics(entropy, normalized, spikiness, max_logit)


@torch.no_grad()
def attention_statistics(
    model: LanguageModel,
    ids: Tensor,
    visible_keys: Tensor | None = None,
    advance: Callable[[int], None] = lambda tokens: None,
) -> AttentionStatistics:
    """Runs a model over a batch, one sequence at a time, and reduces each layer as soon as it is computed.

    Args:
        model: in evaluation mode; not compiled.
        ids: token ids, (B, T).
        visible_keys: as in `Transformer.forward`, (B, T).
        advance: called with T after each sequence.
    """
    sequences: list[AttentionStatistics] = []
    visible: Sequence[Tensor | None] = [None] * len(ids) if visible_keys is None else torch.split(visible_keys, 1)
    for sequence, its_visible_keys in zip(torch.split(ids, 1), visible, strict=True):
        run = partial(model.hidden, sequence, visible_keys=its_visible_keys)
        sequences.append(statistics_of_pass(run))
        advance(sequence.numel())
    return combined(partial(torch.cat, dim=1), sequences)


def head_means(statistics: AttentionStatistics) -> dict[str, Tensor]:
    """Means of the statistics in `MEANS` over sequences and positions, (L, H)."""
    return {
        name: torch.stack([torch.stack([head.nanmean() for head in layer.unbind(1)]) for layer in values])
        for name, values in _defined(statistics).items()
    }


def attention_metrics(statistics: AttentionStatistics) -> dict[str, float]:
    """The metrics of a batch by name, as validation logs them.

    ``attention_entropy`` is the mean over layers; ``.../layer_00``, a layer's mean over heads, sequences and positions;
    ``.../layer_00/head_00``, a head's.  ``temperature/query/layer_00/mean`` and so on: mean, std, min, max over a
    layer's heads, sequences and positions; ``.../layer_00/head_00``, a head's mean (of keys and values, a key-value
    head's).
    """
    heads = {name: means.tolist() for name, means in head_means(statistics).items()}
    layers = {name: [layer.nanmean().item() for layer in values] for name, values in _defined(statistics).items()}
    metrics: dict[str, float] = {}
    for number, max_logits in enumerate(statistics.rows.max_logit):
        layer = f"layer_{number:02d}"
        for name in MEANS:
            metrics[f"attention_{name}/{layer}"] = layers[name][number]
            for head, mean in enumerate(heads[name][number]):
                metrics[f"attention_{name}/{layer}/head_{head:02d}"] = mean
        metrics[f"attention_max_logit/{layer}"] = max_logits.max().item()
        for scaled, taus in statistics.temperatures.items():
            tau = taus[number]
            moments = {"mean": tau.mean(), "std": tau.std(correction=0), "min": tau.min(), "max": tau.max()}
            metrics |= {f"temperature/{scaled}/{layer}/{name}": value.item() for name, value in moments.items()}
            for head, mean in enumerate(tau.mean((0, 2, 3)).tolist()):
                metrics[f"temperature/{scaled}/{layer}/head_{head:02d}"] = mean
    return metrics | {f"attention_{name}": sum(values) / len(values) for name, values in layers.items()}


@torch.no_grad()
def query_key_norms(model: LanguageModel) -> Tensor | None:
    """The operator norm (largest singular value) of each head's ``W = W_q^T W_k / sqrt(d)``, whose logits are
    ``x_i^T W x_j``: arXiv 2411.12892, figure 2.

    With grouped queries, ``W_k`` is the group's.  Only the weights count: biases, the gain of the preceding norm,
    rotation and temperatures are left out.

    W, which is D x D, is never formed: with ``W_q^T = Q R`` and ``W_k^T = P S`` with orthonormal columns, W has the
    singular values of ``R S^T / sqrt(d)``, which is d x d.

    Returns:
        (L, H), float64; None for a model that normalizes its queries or keys.
    """
    norms: list[Tensor] = []
    every = model.query_key_weights()
    if every is None:
        return None
    for weights in every:
        query, key = (weight.detach().cpu().double() for weight in weights)
        key = key.repeat_interleave(len(query) // len(key), dim=0)  # (H, d, D)
        r, s = (torch.linalg.qr(projection.mT, mode="r").R for projection in (query, key))
        norms.append(torch.linalg.matrix_norm(r @ s.mT, 2) * query.size(1) ** -0.5)
    return torch.stack(norms)


def _defined(statistics: AttentionStatistics) -> dict[str, Tensor]:
    """The statistics that means are taken over; with a single token, the normalized entropy counts as 0."""
    values = {name: getattr(statistics.rows, name) for name in MEANS}
    return {name: rows.nan_to_num(0) if rows.size(-1) == 1 else rows for name, rows in values.items()}


def combined(combine: Callable[[list[Tensor]], Tensor], several: Sequence[AttentionStatistics]) -> AttentionStatistics:
    """Each tensor of several statistics, stacked or concatenated."""
    rows = (combine(list(values)) for values in zip(*(one.rows for one in several), strict=True))
    temperatures = {name: combine([one.temperatures[name] for one in several]) for name in several[0].temperatures}
    return AttentionStatistics(RowStatistics(*rows), temperatures, combine([one.visible_keys for one in several]))


def statistics_of_pass(run: Callable[[Observer], object]) -> AttentionStatistics:
    """Statistics of one sequence, which ``run`` puts through a model, calling its argument with each layer's inputs."""
    layers: list[AttentionStatistics] = []
    run(lambda inputs: layers.append(_layer_statistics(inputs)))
    return combined(torch.stack, layers)


def _layer_statistics(inputs: AttentionInputs) -> AttentionStatistics:
    """Statistics of one layer and sequence, without the dimension L; nan for rows that are no softmax."""
    _, heads, length, _ = inputs.query.shape
    if inputs.unmeasured is None:
        rows = row_statistics(inputs.query, inputs.key, inputs.visible_keys, softcap=inputs.softcap)
    else:
        rows = RowStatistics(*[torch.full((1, heads, length), torch.nan)] * len(RowStatistics._fields))
    counts = {"key": inputs.key.size(1), "value": inputs.key.size(1)}
    temperatures = {
        name: (tau * tau.new_ones(1, counts.get(name, heads), length, 1)).cpu()
        for name, tau in inputs.temperatures.items()
    }
    n = inputs.visible_keys.expand(1, length).cpu()
    return AttentionStatistics(RowStatistics(*(part.cpu() for part in rows)), temperatures, n)
