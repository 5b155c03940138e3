"""A model's config without the rest of the package: derived values, ranges, plain values."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ssa.model.config import ModelConfig, RopeScaling, TemperatureConfig, Terms

SMALL = {"name": "test", "size": "test", "n_layer": 2, "n_head": 4, "d_model": 32}
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32)


def test_derived_values_are_filled_in() -> None:
    config = ModelConfig(**SMALL)
    assert (config.n_kv_head, config.head_dim, config.d_ff, config.vocab_size) == (4, 8, 128, None)
    assert ModelConfig(**SMALL, gated_mlp=True).d_ff == 80
    assert ModelConfig(**SMALL, n_kv_head=2, head_dim=6, d_ff=7).plain().items() >= {"n_kv_head": 2, "d_ff": 7}.items()


def test_plain_values_come_back_the_same() -> None:
    rule = TemperatureConfig(name="rule", query=Terms(token="shared"), output=Terms(multiplier="yarn"), yarn_factor=4.0)
    config = ModelConfig(**SMALL, positions="rotary", rope_scaling=SCALING, temperature=rule)
    assert ModelConfig.from_plain(json.loads(json.dumps(config.plain()))) == config


WRONG = {
    "n_layer": (0, "model.n_layer=0: out of range; valid: > 0"),
    "d_model": (30, "model.n_head=4: does not divide model.d_model=30; valid: 1, 2, 3, 5, 6, 10, 15, 30"),
    "n_kv_head": (3, "model.n_kv_head=3: does not divide model.n_head=4; valid: 1, 2, 4"),
    "dropout": (1.0, "model.dropout=1.0: out of range; valid: >= 0 and < 1"),
    "rope_theta": (float("inf"), "model.rope_theta=Infinity: expected a finite number"),
    "name": ("a b", "model.name=a b: expected letters, digits, '.', '_' and '-'"),
    "width": (32, "ModelConfig"),
    "temperature": ({"mlp_hidden": 0}, "model.temperature.mlp_hidden=0: out of range; valid: > 0"),
    "rope_scaling": ({**SCALING.plain(), "low_freq_factor": 4.0}, "model.rope_scaling.low_freq_factor=4: valid: below"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_refused_without_pydantic(key: str) -> None:
    value, expected = WRONG[key]
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        ModelConfig.from_plain({**SMALL, key: value})
    assert str(refused.value).startswith(expected)


def test_it_needs_the_standard_library_alone() -> None:
    code = "import sys, ssa.model.config; assert not {'torch', 'pydantic', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
