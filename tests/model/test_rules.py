"""Every temperature rule on every backbone, as the command line composes them."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
import yaml
from conftest import ROOT

from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.model.attention_stats import attention_metrics, attention_statistics
from ssa.model.config import TemperatureConfig
from ssa.model.transformer import Transformer
from ssa.training.optim import build_optimizer

CONF = ROOT / "conf"
RULES = sorted(file.stem for file in (CONF / "model" / "temperature").glob("*.yaml"))
BACKBONES = ["gpt2", "pythia", "llama"]
SMALL = ["model.n_layer=2", "model.n_head=4", "model.n_kv_head=2", "model.d_model=32"]
VOCAB = 61


@functools.cache
def configured_rule(rule: str, backbone: str) -> Config:
    return configured(f"model={backbone}", f"model/temperature={rule}", *SMALL, "optim.warmup_steps=1")


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def build(config: Config) -> Transformer:
    model = Transformer(config.model, VOCAB, config.seed)
    model.set_token_counts(torch.arange(1, VOCAB + 1))
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rule", RULES)
def test_trains(rule: str, backbone: str) -> None:
    config = configured_rule(rule, backbone)
    model = build(config)
    optimizer, schedule = build_optimizer(model, config.optim, 5)
    before = [parameter.detach().clone() for parameter in model.temperature_parameters().values()]
    losses = []
    for _ in range(5):
        loss = model(ids(4, 32), ids(4, 32, seed=1)).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = [not torch.equal(*pair) for pair in zip(before, model.temperature_parameters().values(), strict=True)]
    assert all(moved)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
def test_changes_the_output_with_each_of_its_parameters(rule: str, backbone: str) -> None:
    model = build(configured_rule(rule, backbone))
    vanilla = Transformer(replace(model.config, temperature=TemperatureConfig()), VOCAB, seed=None)
    vanilla.load_state_dict({k: v for k, v in model.state_dict().items() if k in vanilla.state_dict()})
    generator = torch.Generator().manual_seed(1)
    before = vanilla(ids(1, 12))
    for number, parameter in enumerate([None, *model.temperature_parameters().values()]):
        with torch.no_grad():
            # All at once at first, off a start where w = 0 hides the rest; then one by one.
            for moved in model.temperature_parameters().values() if parameter is None else [parameter]:
                moved.normal_(generator=generator)
        after = model(ids(1, 12))
        assert not torch.allclose(before, after, atol=1e-6), number
        before = after


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rule", RULES)
def test_is_measured(rule: str, backbone: str) -> None:
    model = build(configured_rule(rule, backbone)).eval()
    statistics = attention_metrics(attention_statistics(model, ids(2, 12)))
    named = {name.split("/")[1] for name in statistics if name.startswith("temperature/")}
    assert named == set(model.config.temperature.scaled)
    assert all(math.isfinite(value) for value in statistics.values())


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("rule", RULES)
def test_no_token_sees_a_later_one(rule: str, backbone: str) -> None:
    model = build(configured_rule(rule, backbone))
    with torch.no_grad():
        for parameter in model.temperature_parameters().values():
            parameter.normal_(generator=torch.Generator().manual_seed(2))
    changed = ids(1, 20)
    changed[0, 12] = (changed[0, 12] + 1) % VOCAB
    before, after = model(ids(1, 20)), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_start_values_stand_in_the_class_alone() -> None:
    values = yaml.safe_load((CONF / "model" / "temperature" / "none.yaml").read_text())
    assert {name: value for name, value in values.items() if value is not None} == {"name": "none", "per": "head"}
    assert TemperatureConfig.from_plain(values) == TemperatureConfig()


@pytest.mark.parametrize(("pretrained", "alpha"), [(False, -4.5), (True, -10.0)])
def test_alpha_starts_where_it_was_trained_or_near_the_identity(pretrained: bool, alpha: float) -> None:
    assert TemperatureConfig().starting(pretrained).alpha_init == alpha
    assert TemperatureConfig(alpha_init=1.0).starting(pretrained).alpha_init == 1.0


def test_parameters_of_temperatures_are_named() -> None:
    model = build(configured_rule("ssa", "gpt2"))
    others = Transformer(replace(model.config, temperature=TemperatureConfig()), VOCAB).state_dict()
    named = model.temperature_parameters()
    assert named.keys() == model.state_dict().keys() - others.keys() != set()
    assert all(parameter is model.get_parameter(name) for name, parameter in named.items())


def test_backbones_have_the_released_start_of_beta() -> None:
    starts = {name: configured_rule("released", name).model.temperature for name in BACKBONES}
    assert {name: temperature.beta_init for name, temperature in starts.items()} == {
        "gpt2": 1.5,
        "pythia": 2.0,
        "llama": 2.0,
    }
    assert starts["gpt2"].per == "layer"
    assert starts["gpt2"].value is None
