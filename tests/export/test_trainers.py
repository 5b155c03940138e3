"""Training of an exported model with the tools of others: transformers, TRL and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_folders import SSA, small, write_export
from torch import Tensor

from ssa.export.folder import tokenizer_files
from ssa.pretrained.remote_code import AUTO_MAP, remote_code
from ssa.text.tokenization import Tokenizer, train_bpe

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("own_modules")

LENGTH = 12


@pytest.fixture
def exported(tmp_path: Path, small_text: Path) -> Path:
    """A GPT-2 with the paper's temperatures, a tokenizer, and the code of the class."""
    folder = tmp_path / "exported"
    write_export(folder, small("gpt2", SSA))
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": AUTO_MAP}
    bpe = Tokenizer("bpe-300", train_bpe(iter([small_text.read_text()[:20_000]]), 300))
    files = {"config.json": json.dumps(config), **remote_code(), **tokenizer_files(bpe, 64)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)


def random_ids(*shape: int) -> Tensor:
    return torch.randint(1, 257, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_activation_checkpointing_computes_each_layer_again(exported: Path) -> None:
    model, ids = load(exported).train(), random_ids(2, LENGTH)
    passes: list[int] = []
    model.model.blocks[0].register_forward_pre_hook(lambda *_: passes.append(1))

    def gradients() -> list[Tensor]:
        model.zero_grad()
        passes.clear()
        model(ids, labels=ids).loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    plain, once = gradients(), len(passes)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    again, twice = gradients(), len(passes)
    assert (once, twice) == (1, 2)
    for expected, gradient in zip(plain, again, strict=True):
        assert torch.equal(gradient, expected)
    model.gradient_checkpointing_disable()
    gradients()
    assert len(passes) == 1


def test_the_base_model_has_their_interface(exported: Path) -> None:
    model, ids = load(exported), random_ids(2, LENGTH)
    mask = (torch.arange(LENGTH) >= torch.tensor([[0], [5]])).long()
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert torch.equal(model.get_output_embeddings()(hidden), model(ids, attention_mask=mask).logits)
    with pytest.raises(ValueError, match="position_ids: not supported"):
        model.base_model(ids, position_ids=torch.arange(LENGTH)[None])


def sft(folder: Path, model: Any, out: Path, **settings: Any) -> list[float]:
    """Three steps of TRL's trainer; returns the losses."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    config = trl.SFTConfig(
        output_dir=str(out),
        use_cpu=True,
        bf16=False,
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    texts = datasets.Dataset.from_dict({"text": ["The garden of forking paths."] * 6})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    trainer = trl.SFTTrainer(model, config, train_dataset=texts, processing_class=tokenizer, **settings)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_trl_trains_it(exported: Path, tmp_path: Path) -> None:
    model = load(exported)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = sft(exported, model, tmp_path / "out")
    assert losses[-1] < losses[0]
    assert model.model.gradient_checkpointing  # TRL's default
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert not {name for name in still if ".temperature." in name}


def test_peft_trains_temperatures_beside_lora(exported: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    plain, ids = load(exported), random_ids(2, LENGTH)
    names = set(plain.state_dict())
    lora = peft.LoraConfig(r=2, target_modules=["qkv", "out"], modules_to_save=["temperature"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(load(exported), lora)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)
    losses = sft(exported, model, tmp_path / "out")
    assert losses[-1] < losses[0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or ".temperature.modules_to_save." in name for name in trained)
    temperatures = dict(plain.model.temperature_parameters())
    assert len([name for name in trained if "lora_" not in name]) == len(temperatures)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model.eval()(ids).logits
        again = peft.PeftModel.from_pretrained(load(exported), str(tmp_path / "adapter"))
        assert torch.equal(again(ids).logits, expected)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-5)
    assert set(merged.state_dict()) == names
    moved = {
        name for name, tensor in merged.model.temperature_parameters().items() if (tensor != temperatures[name]).any()
    }
    assert moved == temperatures.keys()
