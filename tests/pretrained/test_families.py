"""Equality with transformers' GPT-2, GPT-NeoX and Llama, with random weights."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ssa.errors import UserError
from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.pretrained.families import FAMILIES, GPT2, GPT_NEOX, LLAMA, Family
from ssa.pretrained.load import from_pretrained
from ssa.pretrained.source import architecture

transformers = pytest.importorskip("transformers")

VOCAB = 97
BY_TYPE = {family.model_type: family for family in FAMILIES}
SMALL_NEOX = {"hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 2, "intermediate_size": 80}
SMALL_LLAMA = {**SMALL_NEOX, "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt2, one head, inner width": (
        "gpt2",
        {"n_embd": 24, "n_layer": 3, "n_head": 1, "n_positions": 50, "n_inner": 40},
    ),
    "gpt2, untied, gelu, eps": (
        "gpt2",
        {
            "n_embd": 30,
            "n_layer": 1,
            "n_head": 5,
            "n_positions": 64,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "neox, a quarter": ("gpt_neox", {**SMALL_NEOX, "rotary_pct": 0.25}),
    "neox, half, one after the other": (
        "gpt_neox",
        {**SMALL_NEOX, "rotary_pct": 0.5, "use_parallel_residual": False, "rotary_emb_base": 500},
    ),
    "neox, whole heads, no attention bias": ("gpt_neox", {**SMALL_NEOX, "rotary_pct": 1.0, "attention_bias": False}),
    "neox, tied": ("gpt_neox", {**SMALL_NEOX, "tie_word_embeddings": True, "hidden_act": "gelu_new"}),
    "llama, grouped": ("llama", SMALL_LLAMA),
    "llama, one key head, tied": ("llama", {**SMALL_LLAMA, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama, all heads, biases": (
        "llama",
        {**SMALL_LLAMA, "num_key_value_heads": None, "attention_bias": True, "mlp_bias": True},
    ),
    "llama, head_dim": ("llama", {**SMALL_LLAMA, "head_dim": 12, "rms_norm_eps": 1e-3}),
    "llama, stretched": ("llama", {**SMALL_LLAMA, "rope_scaling": LLAMA3, "rope_theta": 100.0}),
}


def _random_shape(family: str, number: int) -> tuple[str, dict[str, Any]]:
    """A small model of random sizes."""
    draw = random.Random(f"{family} {number}")
    heads, head_dim = draw.choice([1, 2, 3, 4, 6]), 2 * draw.randint(2, 8)
    sizes = {"hidden_size": heads * head_dim, "num_attention_heads": heads, "num_hidden_layers": draw.randint(1, 3)}
    if family == "gpt2":
        return family, {**sizes, "n_inner": draw.randint(1, 90)}
    sizes |= {"intermediate_size": draw.randint(1, 90), "tie_word_embeddings": draw.random() < 0.5}
    if family == "gpt_neox":
        return family, {**sizes, "rotary_pct": 2 * draw.randint(1, head_dim // 2) / head_dim}
    grouped = draw.choice([n for n in range(1, heads + 1) if heads % n == 0])
    return family, {**sizes, "num_key_value_heads": grouped, "head_dim": 2 * draw.randint(2, 12)}


MODELS |= {f"{kind}, random {n}": _random_shape(kind, n) for kind in ("gpt2", "gpt_neox", "llama") for n in range(4)}
CONFIG_CLASSES = {"gpt2": "GPT2Config", "gpt_neox": "GPTNeoXConfig", "llama": "LlamaConfig"}


def theirs(name: str) -> Any:
    """A model of transformers with every parameter away from its start value."""
    model_type, fields = MODELS[name]
    config = getattr(transformers, CONFIG_CLASSES[model_type])(vocab_size=VOCAB, **fields)
    torch.manual_seed(sorted(MODELS).index(name))
    model = getattr(transformers, BY_TYPE[model_type].architecture)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter + 0.15 * torch.randn_like(parameter))
    return model


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))


def continued(model: Transformer, tokens: torch.Tensor, new: int) -> torch.Tensor:
    for _ in range(new):
        tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), dim=1)
    return tokens


class Pair(NamedTuple):
    """The same model twice, theirs and loaded here, and theirs in a file."""

    theirs: Any
    ours: Transformer
    family: Family
    saved: dict[str, torch.Tensor]


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    model = theirs(request.param)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    return Pair(model, from_pretrained(str(tmp_path)).eval(), BY_TYPE[MODELS[request.param][0]], saved)


def test_equal_logits_tokens_and_gradients(pair: Pair) -> None:
    tokens = ids(2, 48)
    with torch.no_grad():
        torch.testing.assert_close(pair.ours(tokens), pair.theirs(tokens).logits, rtol=1e-4, atol=1e-4)
        prompt = ids(2, 9)
        greedy = pair.theirs.generate(prompt, do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0)
        assert torch.equal(continued(pair.ours, prompt, 12), greedy)

    targets = ids(2, 49)[:, 1:]
    pair.ours(tokens, targets).mean().backward()
    F.cross_entropy(pair.theirs(tokens).logits.flatten(0, 1), targets.flatten()).backward()
    ours, wanted = dict(pair.ours.named_parameters()), dict(pair.theirs.named_parameters())
    for mapping in pair.family.weight_mappings(pair.ours.config):
        gradient = ours.pop(mapping.parameter).grad
        assert gradient is not None
        for name, found in mapping.to_tensors(gradient).items():
            want = wanted.pop(name if name in wanted else "lm_head.weight").grad  # GPT-NeoX has another name in files
            assert (found - want).norm() <= 1e-3 * want.norm(), name
    assert (ours, wanted) == ({}, {})


def test_weights_round_trip(pair: Pair) -> None:
    config, parameters = pair.ours.config, pair.ours.state_dict()
    written: dict[str, torch.Tensor] = {}
    for mapping in pair.family.weight_mappings(config):
        written |= mapping.to_tensors(parameters[mapping.parameter])
    assert set(written) == set(pair.saved)
    assert all(torch.equal(tensor, written[name]) for name, tensor in pair.saved.items())

    described = json.loads(json.dumps(pair.family.to_hf(config, VOCAB)))
    again = type(pair.theirs)(type(pair.theirs.config).from_dict(described)).eval()
    again.load_state_dict(pair.theirs.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids(2, 48)).logits, pair.theirs(ids(2, 48)).logits)

    rebuilt = Transformer(config, seed=None).state_dict()
    for mapping in pair.family.weight_mappings(config):
        for theirs_name, view in zip(mapping.tensors, mapping.views(rebuilt[mapping.parameter]), strict=True):
            view.copy_(written[theirs_name].view(view.shape))
    assert all(torch.equal(tensor, rebuilt[name]) for name, tensor in parameters.items())


@pytest.mark.parametrize("name", ["gpt2", "neox, a quarter", "llama, grouped"])
def test_sharded_half_precision_checkpoints(name: str, tmp_path: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        theirs(name).to(dtype).save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("*.safetensors"))) > 2
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        loaded = from_pretrained(str(folder))
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids(2, 30)), model(ids(2, 30)).logits, rtol=1e-4, atol=1e-4)


MODEL_VALUES = {
    "gpt2": {"n_kv_head": None, "d_ff": 70},
    "gpt_neox": {
        "positions": "rotary",
        "rotary_fraction": 0.5,
        "rope_theta": 123.0,
        "parallel_residual": True,
        "tie_embeddings": False,
        "d_ff": 64,
        "activation": "gelu",
    },
    "llama": {
        "positions": "rotary",
        "rope_theta": 321.0,
        "norm": "rms",
        "norm_eps": 1e-6,
        "activation": "silu",
        "gated_mlp": True,
        "tie_embeddings": False,
        "n_kv_head": 2,
        "head_dim": 6,
        "d_ff": 48,
        "qkv_bias": False,
        "out_bias": False,
        "mlp_bias": False,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_positions": 32,
        },
    },
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_configs_round_trip(family: Family, model_config: Callable[..., ModelConfig]) -> None:
    model = model_config(**{"n_head": 4, "d_model": 32, "vocab_size": 99, **MODEL_VALUES[family.model_type]})
    written = json.loads(json.dumps(family.to_hf(model, 99)))
    assert replace(model, **family.to_model(written)) == model


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
def test_defaults_are_those_of_transformers(family: Family) -> None:
    config = getattr(transformers, CONFIG_CLASSES[family.model_type])()
    written = json.loads(config.to_json_string(use_diff=False))
    absent, given = (ModelConfig(name="test", size="test", **family.to_model(values)) for values in ({}, written))
    assert architecture(absent) == architecture(given)


# What older and newer versions write for the same model.
SPELLINGS: dict[str, tuple[Family, dict[str, Any], dict[str, Any]]] = {
    "rope_theta": (LLAMA, {"rope_theta": 5.0}, {"rope_theta": 5.0}),
    "rope_parameters": (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 5}}, {"rope_theta": 5.0}),
    "rope_parameters before rope_theta": (
        LLAMA,
        {"rope_theta": 6.0, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        {"rope_theta": 5.0},
    ),
    "type for rope_type": (LLAMA, {"rope_scaling": {"type": "default"}}, {"rope_scaling": None}),
    "null is absent": (LLAMA, {"rope_scaling": None, "head_dim": None, "num_key_value_heads": None}, {}),
    "rotary_pct": (GPT_NEOX, {"rotary_pct": 0.5, "rotary_emb_base": 7}, {"rotary_fraction": 0.5, "rope_theta": 7.0}),
    "partial_rotary_factor": (
        GPT_NEOX,
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5, "rope_theta": 7.0}},
        {"rotary_fraction": 0.5, "rope_theta": 7.0},
    ),
    "usual names": (GPT2, {"hidden_size": 96, "num_hidden_layers": 5}, {"d_model": 96, "n_layer": 5}),
    "swish": (LLAMA, {"hidden_act": "swish"}, {"activation": "silu"}),
    "gelu_fast": (GPT_NEOX, {"hidden_act": "gelu_fast"}, {"activation": "gelu_tanh"}),
    "the same maths in another order": (GPT2, {"reorder_and_upcast_attn": True}, {}),
    "the base class": (GPT2, {"architectures": ["GPT2Model"]}, {}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_alternative_key_names(name: str) -> None:
    family, written, fields = SPELLINGS[name]
    assert family.to_model(written) == family.to_model({}) | fields


REFUSED: dict[str, tuple[Family, dict[str, Any], list[str]]] = {
    "activation": (GPT2, {"activation_function": "relu"}, ["activation_function=relu", "gelu_new", "silu"]),
    "unscaled": (GPT2, {"scale_attn_weights": False}, ["scale_attn_weights=false", "valid: true"]),
    "by layer": (GPT2, {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx=true"]),
    "cross-attention": (GPT2, {"add_cross_attention": True}, ["add_cross_attention=true", "valid: false"]),
    "rope type": (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling.type=linear", "llama3"]),
    "new rope type": (
        LLAMA,
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        ["rope_parameters.rope_type=yarn", "valid: default, llama3"],
    ),
    "rope without its factors": (LLAMA, {"rope_scaling": {"rope_type": "llama3"}}, ["rope_scaling.factor: not set"]),
    "rope bands": (
        LLAMA,
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 5.0}},
        ["low_freq_factor=5", "below", "high_freq_factor=4"],
    ),
    "rope is no section": (LLAMA, {"rope_scaling": 3}, ["rope_scaling=3", "section"]),
    "part of a llama head": (LLAMA, {"partial_rotary_factor": 0.5}, ["partial_rotary_factor=0.5", "valid: 1.0"]),
    "odd rotation": (GPT_NEOX, {**SMALL_NEOX, "rotary_pct": 0.32}, ["rotary_pct=0.32", "odd"]),
    "quantized": (LLAMA, {"quantization_config": {"bits": 4}}, ["quantization_config"]),
    "another head": (
        LLAMA,
        {"architectures": ["LlamaForSequenceClassification"]},
        ["LlamaForSequenceClassification", "valid: LlamaForCausalLM, LlamaModel"],
    ),
    "text for a number": (LLAMA, {"hidden_size": "64"}, ["hidden_size=64", "a whole number > 0"]),
    "a fraction of a layer": (LLAMA, {"num_hidden_layers": 2.5}, ["num_hidden_layers=2.5", "a whole number"]),
    "no flag": (LLAMA, {"mlp_bias": 1}, ["mlp_bias=1", "true or false"]),
    "a list": (GPT2, {"n_embd": [3]}, ["n_embd=[3]", "a whole number"]),
    "eps": (LLAMA, {"rms_norm_eps": 0}, ["rms_norm_eps=0", "a number > 0"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_configs_are_refused(name: str) -> None:
    family, written, expected = REFUSED[name]
    with pytest.raises(UserError) as error:
        family.to_model(written)
    assert str(error.value).startswith("config.json: ")
    assert [part for part in expected if part not in str(error.value)] == [], error.value
