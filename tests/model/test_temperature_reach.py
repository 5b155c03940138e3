"""The largest terms of a model's temperatures."""

from __future__ import annotations

import math

import pytest
import torch

from ssa.command_line.compose import configured
from ssa.model.temperature_reach import temperature_reach
from ssa.model.transformer import Transformer

SMALL = ["model=gpt2", "model.n_layer=2", "model.n_head=2", "model.d_model=16"]
IDS = torch.arange(12)[None]


def built(*overrides: str) -> Transformer:
    return Transformer(configured(*SMALL, *overrides).model, 32, 0).eval()


def reach(model: Transformer) -> dict[str, float]:
    with temperature_reach(model) as found, torch.no_grad():
        model(IDS)
    return found


def test_position_term_is_that_of_the_largest_scalar_at_1024_keys() -> None:
    model = built("model/temperature=ssa")
    alphas = [parameter for name, parameter in model.named_parameters() if name.endswith("alpha")]
    assert len(alphas) == 4
    with torch.no_grad():
        alphas[2][1] = -1.0
    assert reach(model)["temperature_position"] == pytest.approx(1 + math.log(1024) / (1 + math.e), rel=1e-6)
    assert reach(model)["temperature_token"] == 0, "w = 0"


def test_token_term_is_the_largest_over_tokens() -> None:
    model = built("model/temperature=frequency")
    model.set_token_counts(torch.arange(1, 33))
    with torch.no_grad():
        [bias for name, bias in model.temperature_parameters().items() if name.endswith("bias")][-1][0] = -0.7
    found = reach(model)
    assert found == {"temperature_position": 1.0, "temperature_token": pytest.approx(math.tanh(0.7), rel=1e-6)}


def test_vanilla_has_not_moved() -> None:
    model = built("model/temperature=none")
    assert reach(model) == {"temperature_position": 1.0, "temperature_token": 0.0}


def test_nothing_is_observed_after_the_block() -> None:
    model = built("model/temperature=token")
    reach(model)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("rule", ["none", "ssa", "yarn", "constant", "gate", "released", "qk_norm"])
def test_a_rule_is_learned_if_it_has_parameters(rule: str) -> None:
    model = built(f"model/temperature={rule}")
    assert model.config.temperature.is_learned == bool(model.temperature_parameters())
