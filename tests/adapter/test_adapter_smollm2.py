"""SmolLM2-135M, a pretrained LLM: adapted, it is this project's own transformer with the same temperatures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from judgment import move
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import ssa
from ssa.adapter.files import WEIGHTS
from ssa.adapter.layer import adapted_layers
from ssa.model.transformer import Transformer
from ssa.pretrained.load import from_pretrained
from ssa.rule_names import rule

FOLDER = os.environ.get("SSA_SMOLLM2", "")
pytestmark = [pytest.mark.hub, pytest.mark.skipif(not FOLDER, reason="SSA_SMOLLM2 names no folder")]


def tokens(seed: int, length: int = 64) -> Tensor:
    return torch.randint(0, 49152, (1, length), generator=torch.Generator().manual_seed(seed))


def pair() -> tuple[Transformer, Any]:
    """The same model twice, at the start values."""
    model = ssa.adapt(AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32))
    return from_pretrained(FOLDER, rule("ssa")), model


def test_the_same_logits(tmp_path: Path) -> None:
    own, model = pair()
    move(model, scale=0.1)
    for block, layer in zip(own.blocks, adapted_layers(model).values(), strict=True):
        block.get_submodule("attention.temperature").load_state_dict(layer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(tokens(0)).logits, own(tokens(0)), rtol=0, atol=1e-5)
    ssa.save(model, tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_size < 120_000


def test_the_same_training() -> None:
    own, model = pair()
    own.freeze_backbone()
    losses: list[list[float]] = []
    for one in (own, model):
        optimizer = torch.optim.AdamW([weight for weight in one.parameters() if weight.requires_grad], 1e-3)
        found = []
        for step in range(8):
            ids = tokens(step, 32)
            output = one(ids)
            logits = output if isinstance(output, Tensor) else output.logits
            loss = nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
