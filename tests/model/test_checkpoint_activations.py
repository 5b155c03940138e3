"""Activation checkpointing: recomputed blocks give the gradients of kept ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssa.model.kv_cache import KVCache
from ssa.model.transformer import Block, Transformer

VOCAB = 61
LLAMA = {"positions": "rotary", "norm": "rms", "activation": "silu", "gated_mlp": True, "n_kv_head": 1}
MODELS: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": LLAMA, "ssa": {"ssa": True}}
IDS = torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.stack([torch.arange(24) % n + 1 for n in (24, 7, 10, 3)])


def gradients(model: Transformer, **options: Any) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model(IDS, IDS, reduction="mean", **options).backward()
    return [parameter.grad for parameter in model.parameters()]


def seeds_of(model: Transformer) -> torch.Tensor:
    return torch.randint(2**32, (4, model.n_dropout_sites), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_equal_bit_for_bit(model_config, name: str, dropout: float, documents, seeded: bool) -> None:
    model = Transformer(model_config(dropout=dropout, **MODELS[name]), VOCAB)
    options = {"visible_keys": documents, "dropout_seeds": seeds_of(model) if seeded else None}
    plain = gradients(model, **options)
    model.checkpoint_activations = True
    assert all(map(torch.equal, gradients(model, **options), plain))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_compiled_blocks_are_equal_bit_for_bit(model_config, name: str, dropout: float) -> None:
    model = Transformer(model_config(dropout=dropout, **MODELS[name]), VOCAB)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile()
    options = {"visible_keys": DOCUMENTS, "dropout_seeds": seeds_of(model)}
    plain = gradients(model, **options)
    model.checkpoint_activations = True
    assert all(map(torch.equal, gradients(model, **options), plain))


def test_blocks_run_twice_in_training_alone(model_config, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Block] = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *rest: calls.append(self) or forward(self, *rest))
    model = Transformer(model_config(), VOCAB)
    model.checkpoint_activations = True
    gradients(model)
    assert len(calls) == 2 * len(model.blocks)
    calls.clear()
    model(IDS, observe=lambda inputs: None).sum().backward()
    model(IDS, cache=KVCache.empty(2)).sum().backward()
    model.eval()
    model(IDS).sum().backward()
    assert len(calls) == 3 * len(model.blocks)
