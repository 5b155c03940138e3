"""Loading of pretrained weights: values, file variants, memory, temperatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from pretrained_folders import SSA, ids, small, tensors_of, write_export, write_model
from safetensors.torch import save_file

from ssa.errors import UserError
from ssa.model.config import Terms
from ssa.model.transformer import Transformer
from ssa.pretrained.families import FAMILIES
from ssa.pretrained.load import from_pretrained, load_pretrained
from ssa.rule_names import rule, rule_names

TYPES = [family.model_type for family in FAMILIES]
RULES = rule_names()


# What is loaded


@pytest.mark.parametrize("model_type", TYPES)
def test_at_the_identity_it_is_vanilla_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    written = write_model(tmp_path, model_type)
    loaded = from_pretrained(str(tmp_path), SSA)
    with torch.no_grad():
        for name, parameter in loaded.named_parameters():
            if name.endswith("alpha"):
                parameter.fill_(-torch.inf)
    assert torch.equal(loaded(ids()), written(ids()))
    assert torch.equal(from_pretrained(str(tmp_path))(ids()), written(ids()))


@pytest.mark.parametrize("name", RULES)
def test_temperatures_start_as_in_a_new_model(name: str, tmp_path: Path) -> None:
    written = write_model(tmp_path, "llama")
    config = small("llama", rule(name))
    loaded = load_pretrained(config, str(tmp_path), seed=7).state_dict()
    new = Transformer(config, seed=7).state_dict()
    assert list(loaded) == list(new)
    backbone = written.state_dict()
    assert all(torch.equal(tensor, backbone.get(key, new[key])) for key, tensor in loaded.items())


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    model = from_pretrained(str(tmp_path), SSA)
    assert model.training
    assert model.head.weight is model.token_embedding.weight
    model(ids(), ids()).mean().backward()
    assert all(parameter.grad is not None and parameter.is_leaf for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    written = write_model(tmp_path, "gpt_neox")
    save_file({name: tensor.to(dtype) for name, tensor in tensors_of(tmp_path).items()}, tmp_path / "model.safetensors")
    for name, parameter in from_pretrained(str(tmp_path)).named_parameters():
        assert torch.equal(parameter, written.get_parameter(name).to(dtype).float())


OTHER_FILES: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]]] = {
    "without prefix": ("gpt2", lambda t: {name.removeprefix("transformer."): tensor for name, tensor in t.items()}),
    "masks": (
        "gpt2",
        lambda t: t | {"h.0.attn.bias": torch.ones(3), "transformer.h.1.attn.masked_bias": torch.ones(1)},
    ),
    "tied matrix": ("gpt2", lambda t: t | {"lm_head.weight": t["transformer.wte.weight"].clone()}),
    "frequencies": ("llama", lambda t: t | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    "more masks": ("gpt_neox", lambda t: t | {"gpt_neox.layers.0.attention.bias": torch.ones(3)}),
    "another name": (
        "gpt_neox",
        lambda t: {name.replace("embed_out", "lm_head"): tensor for name, tensor in t.items()},
    ),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_files_of_other_versions(kind: str, tmp_path: Path) -> None:
    model_type, change = OTHER_FILES[kind]
    written = write_model(tmp_path, model_type)
    save_file(change(tensors_of(tmp_path)), tmp_path / "model.safetensors")
    assert torch.equal(from_pretrained(str(tmp_path))(ids()), written(ids()))


MEMORY = """
import sys
from pathlib import Path
import torch
from ssa.pretrained.load import from_pretrained

def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

from_pretrained(sys.argv[1])
before = kib("VmRSS")
model = from_pretrained(sys.argv[2])
weights = sum(parameter.numel() for parameter in model.parameters()) * 4
print(weights, (kib("VmHWM") - before) * 1024 / weights)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_little_more_than_the_weights(tmp_path: Path) -> None:
    write_model(tmp_path / "small", "gpt2")
    write_model(tmp_path / "large", "gpt2", d_model=1024, n_layer=4)
    (tmp_path / "memory.py").write_text(MEMORY)
    with programs.start(str(tmp_path / "memory.py"), "small", "large", cwd=tmp_path) as process:
        assert process.ended() == 0, process.printed
    weights, ratio = (float(number) for number in process.out.split())
    assert weights > 200e6
    assert ratio <= 1.3


# Exports of this project


@pytest.mark.parametrize("name", RULES)
def test_an_export_loads_with_its_temperatures(name: str, tmp_path: Path) -> None:
    config = small("llama", rule(name))
    written = write_export(tmp_path, config, seed=5)
    restarted = replace(config.temperature, name="mine", alpha_init=-1.0, beta_init=0.5)
    for loaded in (from_pretrained(str(tmp_path)), from_pretrained(str(tmp_path), restarted)):
        assert all(torch.equal(tensor, written.state_dict()[key]) for key, tensor in loaded.state_dict().items())


def test_a_vanilla_export_gets_new_temperatures(tmp_path: Path) -> None:
    written = write_export(tmp_path, small("gpt2"))
    assert torch.equal(
        from_pretrained(str(tmp_path), SSA, seed=1).blocks[1].mlp.up.weight, written.blocks[1].mlp.up.weight
    )


OTHER_RULES: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"query": None, "value": None, "name": "none"}, "model.temperature=none: init_from=X has temperatures"),
    "less": ({"value": None}, "model.temperature.value.token=none: init_from=X has shared"),
    "another part": (
        {"query": Terms(token="gate", position="log")},
        "model.temperature.query.token=gate: init_from=X has shared",
    ),
    "per": ({"per": "layer"}, "model.temperature.per=layer: init_from=X has head"),
    "hidden": ({"mlp_hidden": 3}, "model.temperature.mlp_hidden=3: init_from=X has 16"),
}


@pytest.mark.parametrize("case", OTHER_RULES)
def test_an_export_needs_its_rule(case: str, tmp_path: Path) -> None:
    change, expected = OTHER_RULES[case]
    write_export(tmp_path, small("gpt2", SSA))
    with pytest.raises(UserError) as error:
        from_pretrained(str(tmp_path), replace(SSA, **change))
    assert str(error.value).replace(str(tmp_path), "X").startswith(expected)
    assert "model/temperature=ssa" in str(error.value)
