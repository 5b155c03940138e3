"""Bytes of a training step: against arithmetic by hand, and against the same step on tensors with data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.planning.traced_step import SMALL, LiveBytes, StepBytes, trace_step

B, T, V = 2, 32, 300


def layer(config: ModelConfig, precision: str, **how: bool) -> int:
    """Bytes of activations that one more layer adds."""
    one, two = (
        trace_step(replace(config, n_layer=n), V, (B, T), precision, **how).activations  # type: ignore[arg-type]
        for n in (1, 2)
    )
    return two - one


def test_a_gpt2_layer_by_hand(model_config: Callable[..., ModelConfig]) -> None:
    """Per token: D features of (input of the norm, its output) twice, query, key, value, attention's output; 4 D before
    and after the GELU; the log-sum-exp of each head; mean and deviation of two norms.
    """
    config = model_config(d_model=32, n_head=4)
    features, statistics = 2 * (1 + 1) + 3 + 1 + 2 * 4, 4 + 2 * 2
    assert layer(config, "32-true") == B * T * 4 * (features * 32 + statistics)


def test_a_gpt2_layer_in_bf16(model_config: Callable[..., ModelConfig]) -> None:
    """The inputs of the norms, and their statistics, stay in float32; the weights are copied."""
    config = model_config(d_model=32, n_head=4)
    weights = 32 * (3 * 32 + 32 + 4 * 32 + 4 * 32)
    biases = 3 * 32 + 32 + 4 * 32 + 32
    in_bf16, in_float32 = (2 + 3 + 1 + 2 * 4) * 32, 2 * 32 + 4 + 2 * 2
    assert layer(config, "bf16-mixed") == B * T * (2 * in_bf16 + 4 * in_float32) + 2 * (weights + biases)


def test_document_masks_are_kept_as_floats_by_each_layer(model_config: Callable[..., ModelConfig]) -> None:
    config = model_config(d_model=32, n_head=4)
    assert layer(config, "32-true", dense_mask=True) - layer(config, "32-true") == 4 * B * T * T


@pytest.mark.slow
def test_a_checkpointed_layer_keeps_its_input(model_config: Callable[..., ModelConfig]) -> None:
    config = model_config(ssa=True, d_model=32, n_head=4)
    assert layer(config, "32-true", checkpointed=True) == 4 * B * T * 32
    whole, checkpointed = (
        trace_step(replace(config, n_layer=8), V, (B, T), "32-true", checkpointed=one) for one in (False, True)
    )
    assert sum(checkpointed[:3]) < sum(whole[:3])
    assert checkpointed.small < checkpointed.small_in_graph == whole.small


def test_frozen_weights_need_less(model_config: Callable[..., ModelConfig]) -> None:
    config = model_config(ssa=True, d_model=32, n_head=4)
    assert layer(config, "32-true", temperatures_alone=True) < layer(config, "32-true")


@pytest.mark.parametrize("fields", [{}, {"gated_mlp": True, "norm": "rms", "positions": "rotary", "n_kv_head": 1}])
@pytest.mark.parametrize("accumulates", [False, True])
def test_counts_what_real_tensors_take(
    model_config: Callable[..., ModelConfig], fields: dict[str, object], accumulates: bool
) -> None:
    config = model_config(ssa=True, **fields)
    traced = trace_step(config, V, (B, T), "32-true", accumulates=accumulates)
    with LiveBytes() as live:
        model, ids = Transformer(config, V, 0), torch.zeros((B, T), dtype=torch.long)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        held = live.now
        loss = model(ids, ids, reduction="mean")
        if not accumulates:
            model.zero_grad()
        loss.backward()
    assert live.peak - held == sum(traced[:3])


def test_chunks_of_logits_are_those_of_the_planned_device(model_config: Callable[..., ModelConfig]) -> None:
    config = model_config(max_positions=1024)
    on_cpu, on_gpu = (trace_step(config, 50_257, (2, 1024), "bf16-mixed", device) for device in ("cpu", "cuda"))
    assert on_gpu.activations == on_cpu.activations
    assert on_gpu.loss > 2 * on_cpu.loss


def test_small_tensors_are_told_apart(model_config: Callable[..., ModelConfig]) -> None:
    step = trace_step(model_config(), V, (B, T), "32-true")
    assert step.small == sum(step[:3])
    assert isinstance(step, StepBytes)
    with LiveBytes() as live:
        kept = torch.empty(SMALL, dtype=torch.uint8), torch.empty(SMALL - 1, dtype=torch.uint8)
        assert (live.now, live.small) == (2 * SMALL - 1, SMALL - 1)
        del kept
    assert (live.now, live.small, live.peak) == (0, 0, 2 * SMALL - 1)
