"""Dropout masks: functions of a seed for each sample."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ssa.model.dropout import Dropout
from ssa.model.transformer import Transformer

VOCAB = 61
BACKBONES = {
    "gpt2": {},
    "llama": {"positions": "rotary", "norm": "rms", "activation": "silu", "gated_mlp": True, "n_kv_head": 1},
    "ssa": {"ssa": True, "parallel_residual": True},
}
IDS = torch.randint(0, VOCAB, (4, 24), generator=torch.Generator().manual_seed(0))
VISIBLE_KEYS = torch.stack([torch.arange(24) % n + 1 for n in (24, 7, 10, 3)])


def seeds_of(model: Transformer, seed: int = 0) -> torch.Tensor:
    return torch.randint(2**32, (4, model.n_dropout_sites), generator=torch.Generator().manual_seed(seed))


def test_dropout_acts_in_training_only(model_config) -> None:
    model = Transformer(model_config(ssa=True, dropout=0.5), VOCAB)
    assert not torch.equal(model(IDS), model(IDS)), "drawn from the state of the generator"
    model.eval()
    assert torch.equal(model(IDS), model(IDS, dropout_seeds=seeds_of(model)))


def test_without_dropout_seeds_change_nothing(model_config) -> None:
    model, state = Transformer(model_config(ssa=True), VOCAB), torch.get_rng_state()
    assert torch.equal(model(IDS), model(IDS, dropout_seeds=seeds_of(model)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_sample_has_the_same_masks_in_any_batch(model_config, backbone: str, documents: bool) -> None:
    model = Transformer(model_config(dropout=0.3, **BACKBONES[backbone]), VOCAB)
    seeds = seeds_of(model)

    def losses(rows: slice) -> torch.Tensor:
        visible_keys = VISIBLE_KEYS[rows] if documents else None
        return model(IDS[rows], IDS[rows], visible_keys=visible_keys, dropout_seeds=seeds[rows])

    together = losses(slice(0, 4))
    torch.testing.assert_close(torch.cat([losses(slice(row, row + 1)) for row in range(4)]), together)
    torch.testing.assert_close(torch.cat([losses(slice(0, 2)), losses(slice(2, 4))]), together)


def test_each_site_of_each_sample_has_its_own_mask(model_config) -> None:
    model = Transformer(model_config(dropout=0.5), VOCAB)
    sites = [module for module in model.modules() if isinstance(module, Dropout)]
    assert len(sites) == model.n_dropout_sites == 1 + 3 * model.config.n_layer
    masks = torch.cat([site(torch.ones(4, 100), seeds_of(model)) for site in sites])
    assert len(masks.unique(dim=0)) == 4 * len(sites)
    assert (masks > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert masks.unique().tolist() == [0, 2]


def test_every_site_acts(model_config) -> None:
    model = Transformer(model_config(dropout=0.5), VOCAB)
    seeds = seeds_of(model)
    before = model(IDS, dropout_seeds=seeds)
    for site in range(model.n_dropout_sites):
        changed = seeds.clone()
        changed[2, site] += 1
        after = model(IDS, dropout_seeds=changed)
        assert not torch.equal(after[2], before[2]), site
        torch.testing.assert_close(after[[0, 1, 3]], before[[0, 1, 3]])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_compiled_blocks_draw_the_same_masks(model_config, backbone: str) -> None:
    eager, compiled = (Transformer(model_config(dropout=0.3, **BACKBONES[backbone]), VOCAB) for _ in range(2))
    torch._dynamo.reset()
    for block in compiled.blocks:
        block.compile()
    for seed in (1, 2):
        losses = [model(IDS, IDS, dropout_seeds=seeds_of(model, seed), reduction="mean") for model in (eager, compiled)]
        torch.testing.assert_close(losses[0], losses[1])
        for loss in losses:
            loss.backward()
    for one, other in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_model_imports_no_compiler() -> None:
    code = "import sys, ssa.model.generation; from ssa.model.transformer import Dropout; Dropout(0.0); "
    code += "print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "seconds at the start of every program"
