"""Cost of SSA per training step."""

from __future__ import annotations

import statistics
import time

import pytest
import torch

from ssa.model.transformer import Transformer

MICRO = {"n_layer": 8, "n_head": 5, "d_model": 320, "max_positions": 1024}


@pytest.mark.slow
def test_a_step_costs_at_most_a_seventh_more(model_config) -> None:
    """Interleaved in one process, eager, float32, `model/size=micro`, T = 512: medians of 9 pairs after a warm-up."""
    models = {ssa: Transformer(model_config(ssa=ssa, **MICRO), 2048) for ssa in (False, True)}
    optimizers = {ssa: torch.optim.AdamW(model.parameters(), fused=True) for ssa, model in models.items()}
    ids = torch.randint(0, 2048, (4, 513))

    def seconds(ssa: bool) -> float:
        began = time.perf_counter()
        models[ssa](ids[:, :-1], ids[:, 1:], reduction="mean").backward()
        optimizers[ssa].step()
        optimizers[ssa].zero_grad(set_to_none=True)
        return time.perf_counter() - began

    pairs = [(seconds(False), seconds(True)) for _ in range(10)][1:]
    ratio = statistics.median(ssa / vanilla for vanilla, ssa in pairs)
    print(f"SSA step / vanilla step: {ratio:.3f}")
    assert ratio < 1.15
