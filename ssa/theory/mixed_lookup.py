"""Lookup of single items and of groups: a task whose ideal attention maps differ in spikiness.

L items are the leaves of a binary tree, numbered as a heap: node 1 is the root, node a has the children 2a and 2a + 1,
and L, ..., 2L - 1 are the leaves.  Every node has a Gaussian vector; its embedding is the sum of the vectors on the
path from the root, scaled to norm sqrt(D), so that "scientist" is part of "Hinton".  Embeddings are the same in all
contexts, like words.  In each context, every item has a new value, normal(0, I) in m dimensions; a query names a node
and asks for the mean value of the items below it:

    y = P*_a v        P*_a uniform over the 2^l leaves below node a at level l, with spikiness 2^l / L

The model is one layer of attention: logits from embeddings of queries and items, values v, every head with an m x m
value projection V_h and output projection O_h.  As values are normal, its mean squared error on a node is exact:

    (1 / m) sum_j || sum_h P_h,aj O_h V_h - P*_aj I ||_F^2
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig
from ssa.theory import ensemble
from ssa.theory.attention_map import QUERY, VANILLA, AttentionMap, map_metrics, spikiness

METHODS: dict[str, TemperatureConfig] = {"vanilla": VANILLA, "ssa": QUERY}


def tree_embeddings(items: int, width: int, draws: torch.Generator) -> Tensor:
    """Embeddings of the nodes 1, 2, ..., 2 L - 1 of a tree with L leaves, (2 L - 1, D).  L is a power of 2."""
    vectors = torch.randn(2 * items - 1, width, generator=draws, dtype=torch.float64)
    for node in range(2, 2 * items):
        vectors[node - 1] += vectors[node // 2 - 1]  # the parent is already complete
    return F.normalize(vectors, dim=-1) * math.sqrt(width)


def ideal_maps(items: int) -> Tensor:
    """P* of the nodes 1, 2, ..., 2 L - 1, (2 L - 1, L): uniform over the leaves below each node."""
    maps = torch.zeros(2 * items, items, dtype=torch.float64)
    maps[items:] = torch.eye(items, dtype=torch.float64)
    for node in range(items - 1, 0, -1):
        maps[node] = (maps[2 * node] + maps[2 * node + 1]) / 2
    return maps[1:]


def nodes_at(level: int, items: int) -> range:
    """Indices (node number - 1) of the nodes with 2^level leaves below them; level 0 is the leaves."""
    first = items >> level
    return range(first - 1, 2 * first - 1)


def balanced_queries(levels: Sequence[int], items: int) -> Tensor:
    """Node indices, (levels * L,): L per level, all nodes of a level equally often."""
    return torch.cat([torch.tensor(nodes_at(level, items)).repeat_interleave(1 << level) for level in levels])


class MixedLookup(nn.Module):
    """The attention layer described above, over embeddings of (2 L - 1, D); calling it returns the loss on a batch.

    V_h and O_h start as normal(0, 1 / sqrt(m)) and normal(0, 1 / sqrt(H m)).
    """

    nodes: Tensor
    ideal: Tensor

    def __init__(self, nodes: Tensor, attention: AttentionMap, value_dim: int, draws: torch.Generator) -> None:
        super().__init__()
        self.attention = attention
        heads = attention.n_head
        start = torch.randn(2, heads, value_dim, value_dim, generator=draws, dtype=torch.float64) * value_dim**-0.5
        self.value, self.output = nn.Parameter(start[0].clone()), nn.Parameter(start[1] * heads**-0.5)  # (H, m, m)
        self.items = (len(nodes) + 1) // 2  # L
        self.register_buffer("nodes", nodes)
        self.register_buffer("ideal", ideal_maps(self.items))

    def maps(self, queries: Tensor | slice = slice(None)) -> Tensor:
        """P of all nodes, or of the given node indices, (H, 2 L - 1 or B, L)."""
        x = self.nodes.unsqueeze(0)
        return torch.softmax(self.attention.logits(x[:, queries], x[:, -self.items :])[0], dim=-1)

    def forward(self, queries: Tensor, values: Tensor) -> Tensor:
        """Mean squared error over contexts and dimensions, for node indices, (B,), and values, (B, L, m)."""
        wanted = (self.ideal[queries].unsqueeze(1) @ values).squeeze(1)  # (B, m)
        read = self.maps(queries).transpose(0, 1) @ values  # (B, H, m)
        return (torch.einsum("bhi,hij->bj", read, self._value_output()) - wanted).square().mean()

    def _value_output(self) -> Tensor:
        """(O_h V_h)^T of each head, (H, m, m)."""
        return self.value.mT @ self.output.mT

    @torch.no_grad()
    def errors(self) -> Tensor:
        """Expected squared error on each node, averaged over dimensions, (2 L - 1,)."""
        read = torch.einsum("hal,hij->alij", self.maps(), self._value_output())
        identity = torch.eye(read.size(-1), dtype=torch.float64)
        return (read - self.ideal[..., None, None] * identity).square().sum((1, 2, 3)) / read.size(-1)

    @torch.no_grad()
    def measure(self, levels: Sequence[int]) -> dict[str, Any]:
        """Metrics on the T `balanced_queries`.

        Returns:
            mse; `map_metrics`; ``norm_mean``, the mean of ``tau_i ||W_h||``; ``by_level``: mse per level, tau and
            spikiness averaged per level and head; ``tokens``: ``tau_i ||W_h||`` and spikiness, each (H, T).
        """
        queries = balanced_queries(levels, self.items)
        x, shape = self.nodes.unsqueeze(0), (self.attention.n_head, len(levels), -1)
        tau = self.attention.temperatures(x[:, queries], self.items)[0]  # (H, T)
        maps, norms = self.maps(queries), self.attention.norms()
        norm, spiky = tau * norms.unsqueeze(-1), spikiness(maps)
        errors = self.errors()[queries].reshape(len(levels), -1).mean(-1)
        found = {"mse": errors.mean(), "norm_mean": norm.mean(), **map_metrics(maps, self.ideal[queries], tau, norms)}
        by_level = {
            "mse": errors.tolist(),
            "tau": tau.reshape(shape).mean(-1).mT.tolist(),
            "spikiness": spiky.reshape(shape).mean(-1).mT.tolist(),
        }
        tokens = {"norm": norm.tolist(), "spikiness": spiky.tolist()}
        return {**{name: value.item() for name, value in found.items()}, "by_level": by_level, "tokens": tokens}


def draw_batches(
    items: int, levels: Sequence[int], batch: int, value_dim: int, draws: torch.Generator
) -> ensemble.Batches:
    """Batches for a chunk of steps: node indices, (CHUNK, B), uniform over levels; values, (CHUNK, B, L, m)."""
    pool = balanced_queries(levels, items)
    queries = pool[torch.randint(len(pool), (ensemble.CHUNK, batch), generator=draws)]
    # Drawn in float32, which is three times as fast.
    values = torch.randn(ensemble.CHUNK, batch, items, value_dim, generator=draws).double()
    return queries, values


def train_lookup(
    *,
    method: str,
    levels: Sequence[int],
    items: int,
    width: int,
    heads: int,
    value_dim: int,
    batch: int,
    seeds: int,
    first_seed: int = 0,
    **training: Any,
) -> list[dict[str, Any]]:
    """Train one `MixedLookup` per seed, as one ensemble, and measure each; ``training`` is for `ensemble.train`.

    Heads have D / H dimensions.  Equal seeds give the same tree, initial weights and data for all methods.
    """
    members = []
    numbers = range(first_seed, first_seed + seeds)
    for seed in numbers:
        attention = AttentionMap(width, width // heads, METHODS[method], n_head=heads, seed=seed)
        tree = tree_embeddings(items, width, ensemble.generator(seed, 0))
        members.append(MixedLookup(tree, attention, value_dim, ensemble.generator(seed, 1)))

    def draw(member: int, chunk: int) -> ensemble.Batches:
        return draw_batches(items, levels, batch, value_dim, ensemble.generator(numbers[member], 2, chunk))

    ensemble.train(members, draw, **training)
    return [{"seed": seed, **member.measure(levels)} for seed, member in zip(numbers, members, strict=True)]
