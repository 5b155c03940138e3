"""Fine-tuning a pretrained model, from the command line's words to the record of the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from composing import configured
from pretrained_folders import VOCAB, write_model

from ssa.config import Config
from ssa.pretrained.export import export
from ssa.pretrained.load import from_pretrained
from ssa.record.run_files import read_rows, read_summary
from ssa.record.run_record import run_folder
from ssa.text.tokenization import train_bpe
from ssa.training.train import train


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with its tokenizer, as transformers would write them."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    write_model(folder, "llama", n_layer=3)
    (folder / "tokenizer.json").write_text(train_bpe(iter(topics.values()), VOCAB))
    return folder


@pytest.fixture
def finetune(llama: Path, small_text: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        default = [f"init_from={llama}", "scale=smoke", "data=text", f"data.train={small_text}", "logger=none"]
        default += ["trainer.steps=6", "trainer.eval_every=3", "trainer.log_every=1", "trainer.batch_size=4"]
        default += ["trainer.checkpoint_every=1", "trainer.precision=32-true", "optim.warmup_steps=1"]
        return configured(*default, f"output_dir={tmp_path}/outputs", *overrides)

    return make


def rows(config: Config) -> list[dict]:
    return read_rows(run_folder(config))


def weights(config: Config) -> dict[str, torch.Tensor]:
    return torch.load(run_folder(config) / "checkpoints" / "best.ckpt", weights_only=True)["model"]


def test_ssa_starts_from_the_pretrained_model(finetune) -> None:
    vanilla, ssa = finetune("model=llama"), finetune("model=ssa_llama")
    for config in (vanilla, ssa):
        train(config)
    before, after = rows(vanilla)[0], rows(ssa)[0]
    assert (before["step"], before["tokens"]) == (after["step"], after["tokens"]) == (0, 0)
    assert after["val/loss"] == pytest.approx(before["val/loss"], abs=1e-4)
    assert rows(ssa)[1]["train/loss"] == pytest.approx(rows(vanilla)[1]["train/loss"], abs=1e-4)
    assert rows(ssa)[-1]["val/loss"] < after["val/loss"]
    assert read_summary(run_folder(ssa))["size"] == "tiny-llama"


def test_step_0_is_the_pretrained_model_itself(finetune, llama: Path) -> None:
    config = finetune("model=ssa_llama", "model.temperature.alpha_init=-30")
    train(config)
    model = from_pretrained(str(llama))
    for name, tensor in model.state_dict().items():
        moved = (weights(config)[name] - tensor).abs().max()
        assert moved < 6 * 2 * config.optim.lr  # AdamW moves a weight by about the rate a step


def test_temperatures_alone(finetune, llama: Path) -> None:
    config = finetune("model=ssa_llama", "optim.train=temperature", "optim.lr=1e-3")
    train(config)
    start = from_pretrained(str(llama)).state_dict()
    trained = weights(config)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in start.items())
    assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if name.endswith("token.weight"))
    losses = [row["val/loss"] for row in rows(config) if "val/loss" in row]
    assert losses[-1] < losses[0]


def test_a_fine_tune_resumes_without_the_pretrained_weights(finetune, llama: Path, tmp_path: Path) -> None:
    unbroken = finetune("model=ssa_llama", f"output_dir={tmp_path}/unbroken")
    train(unbroken)
    config = finetune("model=ssa_llama")
    folder = run_folder(config)
    train(config)
    shutil.copytree(folder, tmp_path / "kept")
    kept = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**kept, "status": "interrupted"}))
    hidden = llama / "model.safetensors"
    hidden.rename(llama / "away")
    try:
        train(configured(f"resume={folder}"))
    finally:
        (llama / "away").rename(hidden)
    assert [row["step"] for row in rows(config)] == [row["step"] for row in rows(unbroken)]
    assert all(torch.equal(tensor, weights(unbroken)[name]) for name, tensor in weights(config).items())


def test_there_and_back(finetune, tmp_path: Path) -> None:
    config = finetune("model=ssa_llama", "optim.lr=1e-3")
    train(config)
    folder, _ = export(str(run_folder(config)), str(tmp_path / "exported"))
    again = from_pretrained(str(folder)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(config).items())
    assert finetune("model=ssa_llama", f"init_from={folder}").model.n_layer == 3
