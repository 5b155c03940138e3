"""Entropy, spikiness and temperatures of the attention of an adapted model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssa.adapter.adapt import adapted, causal_lm
from ssa.adapter.layer import LayerTemperatures
from ssa.adapter.visible_keys import visible_keys
from ssa.errors import UserError
from ssa.model.attention import AttentionInputs, Observer
from ssa.model.attention_stats import AttentionStatistics, attention_metrics, combined, statistics_of_pass

_CHANGED = ("s_aux", "position_bias")  # arguments of the interface after which rows are no plain softmax


@contextmanager
def observing(model: Any, observe: Observer | None) -> Iterator[None]:
    """In this block, ``observe`` is called with the inputs of each softmax layer's attention; None: nothing is.

    Raises:
        UserError: the model has no temperatures.
    """
    if observe is None:
        yield
        return

    def called(
        layer: LayerTemperatures, query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]
    ) -> None:
        changed = [name for name in _CHANGED if options.get(name) is not None]
        reason = f"{layer.plan.name}: its attention has `{changed[0]}`, so it is no plain softmax" if changed else None
        scaling = options.get("scaling")
        if scaling is not None:
            query = query * (scaling * query.size(-1) ** 0.5)  # the statistics divide by the root
        n = visible_keys(mask, None, 0, query.transpose(1, 2).flatten(2))
        temperatures = {slot: tau.transpose(1, 2) for slot, tau in layer.recorded.items()}
        observe(AttentionInputs(query, key, n, temperatures, options.get("softcap"), reason))

    layers = adapted(model).values()
    for layer in layers:
        layer.observer = called
    try:
        yield
    finally:
        for layer in layers:
            layer.observer = None


@torch.no_grad()
def attention_statistics(model: Any, ids: Tensor) -> AttentionStatistics:
    """Run an adapted model over a batch, one sequence at a time, and reduce each softmax layer as it is computed.

    Args:
        model: adapted; within `ssa.disable`, its base is measured.
        ids: token ids, (B, T), without padding.

    Returns:
        Statistics of L layers, those with temperatures.

    Raises:
        UserError: the model has no temperatures, attention that is no softmax over the visible keys alone, or layers
            with unequal numbers of heads.
    """
    inner = causal_lm(model)
    if len(heads := {layer.plan.n_head for layer in adapted(model).values()}) > 1:
        raise UserError(f"model: its layers have unequal numbers of heads, {', '.join(map(str, sorted(heads)))}")
    training = model.training

    def run(sequence: Tensor, observe: Observer) -> None:
        def checked(inputs: AttentionInputs) -> None:
            if inputs.unmeasured is not None:
                raise UserError(f"model: {inputs.unmeasured}")
            observe(inputs)

        with observing(model, checked):
            inner(input_ids=sequence, use_cache=False)

    model.eval()
    try:
        sequences = [statistics_of_pass(partial(run, sequence)) for sequence in torch.split(ids, 1)]
    finally:
        model.train(training)
    return combined(partial(torch.cat, dim=1), sequences)


def measured_metrics(model: Any, ids: Tensor) -> dict[str, float]:
    """Mean entropy, spikiness and temperatures of an adapted model on a batch, by layer and head.

    Args:
        model: adapted; within `ssa.disable`, its base is measured.
        ids: token ids, (B, T), without padding.

    Returns:
        Metrics by name, as `ssa.model.attention_stats.attention_metrics` has them: ``attention_entropy`` in nats,
        ``attention_spikiness``, ``temperature/query/layer_00/mean``, ...

    Raises:
        UserError: see `attention_statistics`.
    """
    return attention_metrics(attention_statistics(model, ids))
