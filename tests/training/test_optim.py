"""Parameter groups and schedules."""

from __future__ import annotations

import itertools

import pytest
import torch

from ssa.config import OptimConfig
from ssa.errors import UserError
from ssa.model.config import Terms
from ssa.model.transformer import Transformer
from ssa.training.optim import build_optimizer, freeze, lr_factor, parameter_groups


def optim(**fields) -> OptimConfig:
    values = {"name": "adamw", "train": "all", "lr": 1e-2, "min_lr_ratio": 0.1, "schedule": "cosine"}
    values |= {"warmup_steps": 10, "decay_fraction": 0.2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    return OptimConfig(**{**values, "grad_clip": 1.0, "temperature_lr_multiplier": 3.0, **fields})


def test_every_parameter_is_in_exactly_one_group(model_config) -> None:
    model = Transformer(model_config(ssa=True), 61)
    groups = parameter_groups(model, optim())
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())


def test_groups_decay_matrices_and_speed_up_temperatures(model_config) -> None:
    model = Transformer(model_config(ssa=True), 61)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of = {}
    for group in parameter_groups(model, optim()):
        of |= {names[id(parameter)]: (group["lr"], group["weight_decay"]) for parameter in group["params"]}
    assert of["blocks.0.attention.qkv.weight"] == (1e-2, 0.1)
    assert of["blocks.0.attention.qkv.bias"] == (1e-2, 0.0)
    assert of["final_norm.weight"] == (1e-2, 0.0)
    assert of["blocks.1.attention.temperature.query.terms.token.weight"] == (pytest.approx(3e-2), 0.0)
    assert of["blocks.1.attention.temperature.value.terms.position.alpha"] == (pytest.approx(3e-2), 0.0)


def test_vanilla_and_frozen_parameters_have_no_groups(model_config) -> None:
    model = Transformer(model_config(), 61)
    model.final_norm.weight.requires_grad_(False)
    groups = parameter_groups(model, optim())
    assert [group["name"] for group in groups] == ["decay", "no_decay"]
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_train_temperature_changes_only_temperatures(model_config) -> None:
    model = Transformer(model_config(ssa=True), 61)
    freeze(model, optim(train="temperature"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".temperature." in name} != set()
    assert [group["name"] for group in parameter_groups(model, optim())] == ["temperature"]
    model(torch.randint(0, 61, (2, 8)), torch.randint(0, 61, (2, 8))).mean().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


def test_a_rule_without_parameters_cannot_be_trained(model_config) -> None:
    model = Transformer(model_config(query=Terms(multiplier="yarn")), 61)
    with pytest.raises(UserError, match="has no parameters"):
        freeze(model, optim(train="temperature"))


def test_cosine() -> None:
    factors = [lr_factor(step, optim(), 100) for step in range(101)]
    assert factors[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.55)  # half way between 1 and 0.1
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_wsd_is_stable_then_linear() -> None:
    factors = [lr_factor(step, optim(schedule="wsd", min_lr_ratio=0.0), 100) for step in range(101)]
    assert set(factors[10:81]) == {1.0}
    assert factors[90] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)


def test_wsd_does_not_decay_during_warm_up() -> None:
    factors = [lr_factor(step, optim(schedule="wsd", decay_fraction=1.0, warmup_steps=50), 100) for step in range(100)]
    assert max(factors) == factors[50] == 1


def test_constant() -> None:
    assert {lr_factor(step, optim(schedule="constant"), 100) for step in range(10, 100)} == {1.0}


def test_the_first_step_has_a_rate_and_temperatures_move(model_config) -> None:
    model = Transformer(model_config(ssa=True), 61)
    optimizer, schedule = build_optimizer(model, optim(), 100)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randint(0, 61, (2, 8)), torch.randint(0, 61, (2, 8))).mean().backward()
    optimizer.step()
    schedule.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any(name.endswith("alpha") for name in moved)
    assert any("terms.token.weight" in name for name in moved)
