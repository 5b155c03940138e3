"""Attention forward and backward, and its statistics, beside maps materialized in Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.measure import Figure, interleaved, ratio, seconds
from benchmarks.models import SSA, Shape, materialized_attention
from benchmarks.settings import Settings
from benchmarks.step import step
from ssa.model.attention import AttentionMetadata, CausalSelfAttention
from ssa.model.attention_stats import row_statistics
from ssa.model.config import ModelConfig, TemperatureConfig, Terms

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MATERIALIZED_UP_TO = 2048  # 8,192 keys would take 1 GB for each map of four heads
GOALS = {1024: ">= 3.5", 2048: ">= 6"}  # of a step: the materialized position rule against our SSA
HEADS, WIDTH = 4, 128
POSITION = TemperatureConfig(name="position", query=Terms(position="log"))
RULES = {"vanilla": models.VANILLA, "position rule": POSITION, "SSA": SSA}


def figures(settings: Settings) -> list[Figure]:
    """Times over T, and how much longer materialized maps take."""
    found = []
    for length in LENGTHS:
        small = length <= MATERIALIZED_UP_TO
        layers = {name: _layer(length, rule) for name, rule in RULES.items()}
        statistics = {"entropy and spikiness": _statistics(length)}
        if small:
            layers["materialized position rule"] = _layer(length, POSITION, materialized=True)
            statistics["materialized entropy and spikiness"] = _materialized_statistics(length)
        for cases in (layers, statistics):
            times = interleaved(cases, settings.rounds)
            found += [seconds(f"attention layer, {name}, T {length:,}", values) for name, values in times.items()]
            if small:
                *_, ours, theirs = times  # the last two
                found.append(ratio(f"{theirs} / ours, T {length:,}", times[theirs], times[ours]))
        if small:
            shape = Shape(n_layer=4, d_model=WIDTH, n_head=HEADS, length=length, batch=4, vocabulary=2048)
            cases = {"ours": step(*models.ours(shape, SSA), shape)}
            cases["materialized"] = step(*models.plain(shape, materialized=True), shape)
            times = interleaved(cases, settings.rounds)
            case = f"training step, materialized position rule / our SSA, {shape}"
            found.append(ratio(case, times["materialized"], times["ours"], GOALS.get(length)))
    return found


def _layer(length: int, rule: TemperatureConfig, materialized: bool = False) -> Callable[[], None]:
    """Forward and backward of one attention layer."""
    config = ModelConfig(
        name="gpt2", size="x", n_layer=1, n_head=HEADS, d_model=WIDTH, max_positions=length, temperature=rule
    )
    layer = CausalSelfAttention(config)
    for parameter in layer.temperature.parameters():
        torch.nn.init.normal_(parameter, 0, 0.02)
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    metadata = AttentionMetadata(torch.arange(1, length + 1), None, None, None)
    alpha = torch.full((HEADS, 1, 1), -4.5, requires_grad=True)

    def ours() -> None:
        layer(x, metadata).sum().backward()

    def theirs() -> None:
        query, key, value = (some.unflatten(-1, (HEADS, -1)).transpose(1, 2) for some in layer.qkv(x).chunk(3, dim=-1))
        mixed = materialized_attention(query, key, value, alpha)
        layer.out(mixed.transpose(1, 2).flatten(2)).sum().backward()

    return theirs if materialized else ours


def _heads(length: int) -> tuple[Tensor, Tensor]:
    """Queries and keys."""
    query, key = torch.randn(2, 1, HEADS, length, WIDTH // HEADS, generator=torch.Generator().manual_seed(0))
    return query, key


def _statistics(length: int) -> Callable[[], object]:
    query, key = _heads(length)
    return lambda: row_statistics(query, key)


def _materialized_statistics(length: int) -> Callable[[], object]:
    query, key = _heads(length)
    n = torch.arange(1, length + 1)

    def run() -> tuple[Tensor, Tensor]:
        logits = query @ key.mT * query.size(-1) ** -0.5
        maps = logits.masked_fill(n[:, None] < n, -torch.inf).softmax(-1)
        return -torch.xlogy(maps, maps).sum(-1), 1 / (n * maps.square().sum(-1))

    return run
