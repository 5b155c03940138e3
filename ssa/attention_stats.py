"""Entropy, spikiness and temperatures of causal attention, exactly, in O(T) memory.

For a softmax row p over the n keys that a query sees, from its logits s (arXiv 2411.12892, section 2):

    entropy     H = lse(s) - sum_j p_j s_j          nats; at most log n
    normalised  H / log n                           0 (one key) to 1 (uniform); undefined at n = 1, left out of means
    spikiness   1 / (n sum_j p_j^2)                 share of the n keys effectively attended to; lower is spikier
    max logit   max_j s_j

Rows are worked through in chunks, so that no T x T map is ever held.  Letters: B batch, H heads, T tokens, d head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ssa.attention import AttentionInputs, causal_mask
from ssa.transformer import Transformer

CHUNK_ELEMENTS = 2**21  # logits held at once


class RowStatistics(NamedTuple):
    """Of each softmax row, float32, (B, H, T)."""

    entropy: Tensor
    entropy_normalized: Tensor  # nan where one key is visible
    spikiness: Tensor
    max_logit: Tensor


@torch.no_grad()
def row_statistics(
    query: Tensor, key: Tensor, visible: Tensor | None = None, chunk_elements: int = CHUNK_ELEMENTS
) -> RowStatistics:
    """Statistics of the causal softmax over ``query . key / sqrt(d)``.

    Args:
        query: (B, H, T, d), with its temperature applied.
        key: (B, K, T, d), likewise; K divides H (grouped-query attention).
        visible: n, the keys each query sees: its own and the n - 1 before it, (T,) or (B, T).  Default: all before it.
        chunk_elements: the most logits to hold at once (one row of all heads at least).
    """
    batch, heads, length, head_dim = query.shape
    query, key = query.float() * head_dim**-0.5, key.float().repeat_interleave(heads // key.size(1), dim=1)
    if visible is None:
        visible = torch.arange(1, length + 1, device=query.device)
    rows = max(1, chunk_elements // (batch * heads * length))
    chunks = [_chunk(query[:, :, i : i + rows], key, visible[..., i : i + rows], i) for i in range(0, length, rows)]
    return RowStatistics(*(torch.cat(parts, dim=-1) for parts in zip(*chunks, strict=True)))


def _chunk(query: Tensor, key: Tensor, visible: Tensor, start: int) -> RowStatistics:
    """Rows ``start`` to ``start + R`` against the keys up to the last of them: (B, H, R, d), (B, H, T, d)."""
    stop = start + query.size(2)
    n = visible.reshape(-1, 1, visible.size(-1))  # (1 or B, 1, R)
    hidden = ~causal_mask(visible, stop)  # (1 or B, 1, R, stop)
    with torch.autocast(query.device.type, enabled=False):
        logits = query @ key[:, :, :stop].transpose(-1, -2)  # (B, H, R, stop)
    logits = logits.masked_fill_(hidden, -torch.inf)
    max_logit = logits.amax(-1)
    log_p = torch.log_softmax(logits, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p.masked_fill_(hidden, 0)).sum(-1)
    spikiness = 1 / (n * p.square().sum(-1))
    normalized = torch.where(n > 1, entropy / n.log(), torch.nan)
    return RowStatistics(entropy, normalized, spikiness, max_logit)


@torch.no_grad()
def attention_statistics(model: Transformer, ids: Tensor, visible: Tensor | None = None) -> dict[str, float]:
    """Statistics of every layer and head over a fixed batch, by metric name.

    ``attention_entropy`` is the mean over layers; ``.../layer_00`` that of a layer over heads, sequences and
    positions; ``.../layer_00/head_00`` that of one head.  ``temperature/query/layer_00/mean`` and so on: mean, std,
    min, max over heads, sequences and positions of a layer.

    Args:
        model: in evaluation mode; it is run once a sequence, its compiled form (if any) left alone.
        ids: token ids, (B, T).
        visible: as the model takes it, (B, T).
    """
    layers: list[list[dict[str, Tensor]]] = []
    for number, sequence in enumerate(torch.split(ids, 1)):
        observed: list[AttentionInputs] = []
        seen = None if visible is None else visible[number : number + 1]
        model.forward(sequence, observe=observed.append, visible=seen)
        layers.append([_of_layer(inputs) for inputs in observed])
    statistics: dict[str, float] = {}
    for number, of_sequences in enumerate(zip(*layers, strict=True)):
        merged = {name: torch.cat([one[name] for one in of_sequences]) for name in of_sequences[0]}
        statistics |= dict(_named(f"layer_{number:02d}", merged))
    for name in ("attention_entropy", "attention_entropy_normalized", "attention_spikiness"):
        values = [statistics[f"{name}/layer_{number:02d}"] for number in range(model.config.n_layer)]
        statistics[name] = sum(values) / len(values)
    return statistics


def _of_layer(inputs: AttentionInputs) -> dict[str, Tensor]:
    """Row statistics (1, H, T) and temperatures (1, H or K, T, 1 or d) of one sequence."""
    rows = row_statistics(inputs.query, inputs.key, inputs.visible)
    _, heads, length, _ = inputs.query.shape
    counts = {"key": inputs.key.size(1), "value": inputs.key.size(1)}
    temperatures = {
        f"temperature/{name}": tau.expand(1, counts.get(name, heads), length, -1)
        for name, tau in inputs.temperatures.items()
    }
    return {
        "attention_entropy": rows.entropy,
        "attention_entropy_normalized": rows.entropy_normalized,
        "attention_spikiness": rows.spikiness,
        "attention_max_logit": rows.max_logit,
    } | temperatures


def _named(layer: str, merged: dict[str, Tensor]) -> Iterator[tuple[str, float]]:
    for name, values in merged.items():
        if name.startswith("temperature/"):
            yield f"{name}/{layer}/mean", values.mean().item()
            yield f"{name}/{layer}/std", values.std(correction=0).item()
            yield f"{name}/{layer}/min", values.min().item()
            yield f"{name}/{layer}/max", values.max().item()
        elif name == "attention_max_logit":
            yield f"{name}/{layer}", values.max().item()
        else:
            values = values.nan_to_num(0) if values.size(-1) == 1 else values  # one token: no choice, entropy 0
            yield f"{name}/{layer}", values.nanmean().item()
            for head in range(values.size(1)):
                yield f"{name}/{layer}/head_{head:02d}", values[:, head].nanmean().item()
