"""Saving temperatures and loading them onto a base model, also beside LoRA."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import VOCABULARY, tiny_model
from judgment import move
from peft import LoraConfig, PeftModel, get_peft_model
from pretrained_folders import write_model
from test_adapt import ids, logits
from transformers import AutoModelForCausalLM

import ssa
from ssa.adapter.files import CONFIG, WEIGHTS
from ssa.adapter.layer import adapted_layers
from ssa.errors import UserError


def moved(model_type: str = "llama", rule: str = "ssa", **options: Any) -> Any:
    model = ssa.adapt(tiny_model(model_type), rule, **options)
    move(model)
    return model


@pytest.mark.parametrize("rule", ["ssa", "ssa_mlp", "frequency"])
def test_round_trip(rule: str, tmp_path: Path) -> None:
    counts = {"token_counts": torch.arange(VOCABULARY)} if rule == "frequency" else {}
    model = moved(rule=rule, **counts)
    assert ssa.save(model, tmp_path / "saved") == tmp_path / "saved"
    loaded = ssa.load(tiny_model("llama"), tmp_path / "saved")
    assert torch.equal(logits(loaded, ids()), logits(model, ids()))
    assert [one.requires_grad for one in loaded.model.embed_tokens.parameters()] == [False]
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "ssa.load(model, FOLDER)" in card
    assert f"rule `{rule}`" in card


@pytest.mark.slow
def test_another_process_needs_transformers_and_this_package_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "base", "llama")
    model = ssa.adapt(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    move(model)
    ssa.save(model, tmp_path / "saved")
    code = (
        "import ssa, sys, torch\nfrom transformers import AutoModelForCausalLM\n"
        f"model = ssa.load(AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r}), "
        f"{str(tmp_path / 'saved')!r})\n"
        "print(float(model(torch.arange(20)[None]).logits.double().sum()))\n"
        "assert not {'lightning', 'hydra', 'wandb', 'peft'} & set(sys.modules), 'imported in vain'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert float(done.stdout) == float(model(torch.arange(20)[None]).logits.double().sum())


@pytest.mark.parametrize("first", ["peft", "ssa"])
def test_beside_lora(first: str, tmp_path: Path) -> None:
    base = tiny_model("llama")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    if first == "peft":
        model = ssa.adapt(get_peft_model(base, lora), train="all")
    else:
        model = get_peft_model(ssa.adapt(base), lora)
        for layer in adapted_layers(model).values():
            layer.requires_grad_(True)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-2)
    for _ in range(3):
        model(ids(), labels=ids()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, one in model.named_parameters() if not torch.equal(one, before[name])}
    assert changed == {name for name in before if ".temperature." in name or "lora_" in name}
    model.eval()
    model.save_pretrained(tmp_path)
    ssa.save(model, tmp_path)
    loaded = ssa.load(PeftModel.from_pretrained(tiny_model("llama"), tmp_path), tmp_path).eval()
    assert torch.equal(logits(loaded, ids()), logits(model, ids()))
    with model.disable_adapter(), ssa.disable(model):
        assert torch.equal(logits(model, ids()), logits(tiny_model("llama"), ids()))
    ssa.unload(model)


def test_another_base_is_warned_of(tmp_path: Path) -> None:
    ssa.save(moved(), tmp_path)
    other = tiny_model("llama")
    other.config.rope_parameters = {**other.config.rope_parameters, "rope_theta": 5.0}
    with pytest.warns(UserWarning, match="whose config is not that of"):
        ssa.load(other, tmp_path)


def _without_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _empty(folder: Path) -> None:
    (folder / CONFIG).write_text("{}")


def _of_another_save(folder: Path) -> None:
    ssa.save(moved(rule="token"), folder / "other")
    (folder / "other" / WEIGHTS).rename(folder / WEIGHTS)


def _changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(content | values))

    return change


def _truncated(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4])


def _narrow(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    next(iter(content["layers"].values()))["query.terms.token.weight"] = [4, 16]
    (folder / CONFIG).write_text(json.dumps(content))


def _wide(folder: Path) -> None:
    config = tiny_model("llama").config
    config.head_dim = 16
    model = ssa.adapt(AutoModelForCausalLM.from_config(config))
    ssa.save(model, folder)


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "no folder": (lambda folder: None, "llama", "no such folder"),
    "no weights": (_without_weights, "llama", f"has no {WEIGHTS}; valid: a folder that ssa.save has written"),
    "empty": (_empty, "llama", r"format=.*; valid: 1"),
    "later": (_changed(format=99), "llama", "format=99; valid: 1"),
    "other save": (_of_another_save, "llama", f"damaged \\({WEIGHTS} is not the one that was written with"),
    "no rule": (_changed(temperature="ssa"), "llama", "ssa_adapter.json"),
    "no base": (_changed(base={}), "llama", "damaged .base has no config_hash"),
    "truncated": (_truncated, "llama", "damaged"),
    "width": (_narrow, "llama", "damaged .the tensors are not those"),
    "wide": (_wide, "llama", r"temperatures of sizes .*\[4, 16\].*this model's have"),
    "architecture": (lambda folder: None, "qwen3", "temperatures of a llama .*; the model is a qwen3"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_one_line_for_each_fault(case: str, tmp_path: Path) -> None:
    damage, model_type, message = DAMAGE[case]
    ssa.save(moved(), tmp_path / "saved")
    damage(tmp_path / "saved")
    model = tiny_model(model_type)
    folder = tmp_path / ("absent" if case == "no folder" else "saved")
    with pytest.raises(UserError, match=message) as caught:
        ssa.load(model, folder)
    assert "\n" not in str(caught.value)
    assert not adapted_layers(model)


def test_a_trainer_changes_no_hash(tmp_path: Path) -> None:
    model = moved()
    model.config.eos_token_id, model.config.pad_token_id = 7, 8
    ssa.save(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ssa.load(tiny_model("llama"), tmp_path)


def test_a_card_of_ours_is_renewed(tmp_path: Path) -> None:
    ssa.save(moved(), tmp_path)
    ssa.save(moved(rule="token"), tmp_path)
    assert "rule `token`" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    ssa.save(moved(), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no temperatures to save"):
        ssa.save(tiny_model("llama"), tmp_path)
