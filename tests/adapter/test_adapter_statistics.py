"""Entropy and spikiness of adapted models, against this project's transformer and against attention maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from judgment import move
from pretrained_folders import small, write_model
from test_adapt import ids
from transformers import AutoModelForCausalLM

import ssa
from ssa.adapter.layer import adapted_layers
from ssa.adapter.statistics import attention_statistics
from ssa.errors import UserError
from ssa.model.attention_stats import attention_metrics
from ssa.model.attention_stats import attention_statistics as of_transformer
from ssa.pretrained.families import FAMILIES
from ssa.pretrained.load import load_pretrained
from ssa.rule_names import rule


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
@pytest.mark.parametrize("name", ["ssa", "qk_norm", "gate"])
def test_as_in_this_projects_transformer(model_type: str, name: str, tmp_path: Path) -> None:
    write_model(tmp_path, model_type)
    own = load_pretrained(small(model_type, rule(name).starting(pretrained=True)), str(tmp_path), seed=0)
    model = ssa.adapt(AutoModelForCausalLM.from_pretrained(tmp_path), name)
    move(model)
    for block, layer in zip(own.blocks, adapted_layers(model).values(), strict=True):
        block.attention.temperature.load_state_dict(layer.state_dict())
    expected = attention_metrics(of_transformer(own, ids()))
    found = ssa.attention_metrics(model, ids())
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("model_type", ["mistral", "qwen3", "granite", "jamba", "gemma2"])
def test_as_the_attention_maps_say(model_type: str) -> None:
    """Also with a sliding window, normalized queries, another scaling and a soft cap."""
    model = ssa.adapt(tiny_model(model_type, attn_implementation="eager"))
    move(model)
    found = attention_statistics(model, ids())
    maps = [one for one in model(ids(), use_cache=False, output_attentions=True).attentions if one is not None]
    assert len(maps) == len(adapted_layers(model)) == len(found.rows.entropy)
    for layer, p in enumerate(maps):
        entropy = torch.special.entr(p).sum(-1)
        torch.testing.assert_close(found.rows.entropy[layer], entropy, rtol=1e-4, atol=1e-4)
        spikiness = 1 / ((p > 0).sum(-1) * p.square().sum(-1))
        torch.testing.assert_close(found.rows.spikiness[layer], spikiness, rtol=1e-4, atol=1e-4)


def test_the_base_model() -> None:
    model = ssa.adapt(tiny_model("llama"))
    before = ssa.attention_metrics(model, ids())
    move(model)
    with ssa.disable(model):
        base = ssa.attention_metrics(model, ids())
    assert base["attention_entropy"] == pytest.approx(before["attention_entropy"], rel=1e-3)
    assert base["attention_entropy"] != ssa.attention_metrics(model, ids())["attention_entropy"]
    assert not any(name.startswith("temperature/") for name in base)


def test_what_is_no_softmax() -> None:
    with pytest.raises(UserError, match="its attention has `s_aux`, so it is no plain softmax"):
        ssa.attention_metrics(ssa.adapt(tiny_model("gpt_oss")), ids())
    with pytest.raises(UserError, match="has no temperatures"):
        ssa.attention_metrics(tiny_model("llama"), ids())
