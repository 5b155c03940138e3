"""Fine-tuning pretrained models, from overrides to the run folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from pretrained_folders import VOCAB, overflowing, write_model
from tiny_runs import broken_at

from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.errors import UserError
from ssa.export.folder import export
from ssa.pretrained.load import from_pretrained
from ssa.pretrained.source import weights_hash
from ssa.record.checkpoint import base_hash, read, read_best, save
from ssa.record.run_files import read_environment, read_rows, read_summary
from ssa.record.run_model import best_weights, load_run
from ssa.record.run_record import run_folder
from ssa.text.tokenization import train_bpe
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with its tokenizer, as transformers would write them."""
    from pydoc_data.topics import topics

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    write_model(folder, "llama", n_layer=3)
    (folder / "tokenizer.json").write_text(train_bpe(iter(topics.values()), VOCAB))
    (folder / "theirs.py").write_text("raise SystemExit('foreign code ran')")
    settings = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": [None, "theirs.Theirs"]}}
    settings |= {"eos_token": "of", "bos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "eos_token_id": 7}))
    return folder


@pytest.fixture
def finetune(llama: Path, small_text: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        default = [f"init_from={llama}", "scale=smoke", "data=text", f"data.train={small_text}", "logger=none"]
        default += ["trainer.steps=6", "trainer.eval_every=3", "trainer.log_every=1", "trainer.batch_size=4"]
        default += ["trainer.checkpoint_every=1", "trainer.precision=32-true", "optim.warmup_steps=1"]
        default += ["data.max_eval_tokens=1024"]
        return configured(*default, f"output_dir={tmp_path}/outputs", *overrides)

    return make


def rows(config: Config) -> list[dict]:
    return read_rows(run_folder(config))


def weights(config: Config) -> dict[str, torch.Tensor]:
    return read_best(best_weights(run_folder(config)), config).tensors


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


def test_step_0_is_the_pretrained_model(finetune, llama: Path) -> None:
    config = finetune("model=ssa_llama", "model.temperature.alpha_init=-30")
    train(config)
    model = from_pretrained(str(llama))
    for name, tensor in model.state_dict().items():
        moved = (weights(config)[name] - tensor).abs().max()
        assert moved < 6 * 2 * config.optim.lr  # AdamW moves a weight by about the rate a step


def test_training_temperatures_only(finetune, llama: Path) -> None:
    config = finetune("model=ssa_llama", "optim.train=temperature", "optim.lr=1e-3")
    train(config)
    start = from_pretrained(str(llama)).state_dict()
    trained = weights(config)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in start.items())
    assert all(tensor.abs().sum() > 0 for name, tensor in trained.items() if name.endswith("token.weight"))
    losses = [row["val/loss"] for row in rows(config) if "val/loss" in row]
    assert losses[-1] < losses[0]


TEMPERATURES = ("model=ssa_llama", "optim.train=temperature", "optim.lr=1e-3", "trainer.keep_last=true")


def test_checkpoints_of_temperatures_refer_to_the_pretrained_weights(finetune, llama: Path, tmp_path: Path) -> None:
    config = finetune(*TEMPERATURES)
    train(config)
    checkpoints = run_folder(config) / "checkpoints"
    best, last = (read(checkpoints / f"{name}.ckpt") for name in ("best", "last"))
    names = {name for name in weights(config) if ".temperature." in name}
    assert set(best["model"]) == names < set(weights(config))
    assert set(last["state_dict"]) == {f"model.{name}" for name in names}
    assert best["base"] == last["base"] == weights_hash(str(llama))
    complete = tmp_path / "complete.ckpt"  # as earlier versions wrote it
    save({"model": weights(config), "config": best["config"], "step": best["step"]}, complete)
    assert read_best(complete, config).sha256() == read_best(checkpoints / "best.ckpt", config).sha256()
    _, model, _ = load_run(run_folder(config))
    assert all(torch.equal(tensor, weights(config)[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("before", ["referring", "complete"])
def test_a_run_of_temperatures_resumes_bitwise(finetune, tmp_path: Path, before: str) -> None:
    unbroken, broken = finetune(*TEMPERATURES, f"output_dir={tmp_path}/unbroken"), finetune(*TEMPERATURES)
    train(unbroken)
    with (
        pytest.raises(ZeroDivisionError),
        patch.object(LanguageModule, "on_train_batch_start", broken_at(4)),
        patch("ssa.training.train.base_hash", base_hash if before == "referring" else lambda *_: None),
    ):
        train(broken)
    last = run_folder(broken) / "checkpoints" / "last.ckpt"
    assert ("base" in read(last)) == (before == "referring")
    train(broken)
    assert all(torch.equal(tensor, weights(unbroken)[name]) for name, tensor in weights(broken).items())
    one, other = (read(run_folder(config) / "checkpoints" / "last.ckpt") for config in (unbroken, broken))
    assert one["base"] == other["base"]
    assert all(torch.equal(tensor, other["state_dict"][name]) for name, tensor in one["state_dict"].items())
    assert [row.get("val/loss") for row in rows(unbroken)] == [row.get("val/loss") for row in rows(broken)]


@pytest.mark.parametrize("fault", ["moved", "changed"])
def test_the_pretrained_weights_that_a_checkpoint_refers_to_are_gone(finetune, llama: Path, tmp_path, fault) -> None:
    base = Path(shutil.copytree(llama, tmp_path / "base"))
    config = finetune(*TEMPERATURES, f"init_from={base}")
    train(config)
    if fault == "moved":
        base.rename(tmp_path / "elsewhere")
        reason = rf", and the weights that they were trained on are not available: init_from={base}: no such folder"
    else:
        write_model(base, "llama", seed=1, n_layer=3)
        reason = rf", and init_from={base} has changed since they were trained: restore it"
    with pytest.raises(UserError, match=rf"best\.ckpt: holds the temperatures alone{reason}$"):
        load_run(run_folder(config))


@pytest.mark.slow
def test_a_fine_tune_resumes_without_the_pretrained_folder(finetune, llama: Path, tmp_path: Path) -> None:
    unbroken = finetune("model=ssa_llama", f"output_dir={tmp_path}/unbroken")
    train(unbroken)
    config = finetune("model=ssa_llama")
    with pytest.raises(ZeroDivisionError), patch.object(LanguageModule, "on_train_batch_start", broken_at(4)):
        train(config)
    hidden = llama.rename(tmp_path / "elsewhere")
    try:
        train(configured(f"resume={run_folder(config)}"))
    finally:
        hidden.rename(llama)
    assert [row["step"] for row in rows(config)] == [row["step"] for row in rows(unbroken)]
    assert all(torch.equal(tensor, weights(unbroken)[name]) for name, tensor in weights(config).items())
    assert read_environment(run_folder(config))["inputs"]["init_from"] == {str(llama): weights_hash(str(llama))}


def test_changed_pretrained_weights_are_refused(finetune, llama: Path) -> None:
    """A config that was made before the change; one made now is another run."""
    config = finetune("model=llama")
    train(config)
    train(config)  # is reported
    kept = {path: path.read_bytes() for path in llama.iterdir()}
    write_model(llama, "llama", seed=1, n_layer=3)
    try:
        with pytest.raises(UserError, match=r"init_from: .* has changed since .* start over with rerun=true"):
            train(config)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_a_harmful_fine_tune_keeps_the_pretrained_model(finetune, llama: Path) -> None:
    config = finetune("model=llama", "optim.lr=3.0")
    train(config)
    summary = read_summary(run_folder(config))
    assert summary["best_step"] == 0
    assert summary["best/val/loss"] == pytest.approx(summary["step_0/val/loss"], abs=1e-6)
    start = from_pretrained(str(llama)).state_dict()
    assert all(torch.equal(tensor, weights(config)[name]) for name, tensor in start.items())


def test_the_common_learning_rate_is_logged(finetune) -> None:
    rates = []
    for what in ("all", "temperature"):
        config = finetune("model=ssa_llama", f"optim.train={what}")
        train(config)
        rates.append([row["train/lr"] for row in rows(config) if "train/lr" in row])
    assert rates[0] == pytest.approx(rates[1])


def test_notes_about_a_rule_at_the_start(finetune, capsys) -> None:
    train(finetune("model=ssa_llama"))
    assert "its position term moves at most 0.0002 from 1" in capsys.readouterr().out
    train(finetune("model=llama", "model/temperature=gate"))
    assert "the output temperature (gate) does not start at 1: step 0 is not the pretrained" in capsys.readouterr().out


def test_token_frequencies_of_an_export_are_kept(finetune, tmp_path: Path) -> None:
    config = finetune("model=llama", "model/temperature=frequency")
    train(config)
    folder, _ = export(str(run_folder(config)), str(tmp_path / "exported"))
    (tmp_path / "other.txt").write_text("Another text, of other words. " * 2000)
    again = finetune(
        "model=llama", "model/temperature=frequency", f"init_from={folder}", f"data.train={tmp_path}/other.txt"
    )
    train(again)
    assert torch.equal(weights(again)["log_frequency"], weights(config)["log_frequency"])


def test_rotary_positions_have_no_limit(finetune) -> None:
    config = finetune("model=llama", "model/temperature=yarn", "model.max_positions=128", "data.block_size=128")
    assert config.model.max_positions == 128
    train(config)
    with pytest.raises(UserError, match=r"model\.max_positions=32: init_from=.* has 64"):
        finetune("model=llama", "model.max_positions=32")


def test_a_vocabulary_that_is_too_small_is_refused(finetune) -> None:
    with pytest.raises(UserError, match=r"data\.tokenizer=.*: 512 tokens; valid: up to model\.vocab_size=100"):
        train(finetune("model=gpt2", "init_from=null", "data.tokenizer=bpe-512", "model.vocab_size=100"))


@pytest.mark.usefixtures("own_modules")
def test_fine_tune_export_fine_tune(
    finetune: Callable[..., Config], llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finetune("model=ssa_llama", "optim.lr=1e-3")
    train(config)
    folder, _ = export(str(run_folder(config)), str(tmp_path / "exported"))
    assert f"{llama}: left out of the export: tokenizer_config.json: auto_map" in capsys.readouterr().out
    assert not (folder / "theirs.py").exists()
    again = from_pretrained(str(folder)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights(config).items())
    assert finetune("model=ssa_llama", f"init_from={folder}").model.n_layer == 3
    # The special tokens and the template of the model that it was tuned from.
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 7
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer.eos_token == "of"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hm"}], tokenize=False) == "hm"


def test_a_loss_of_step_0_that_is_not_finite_leaves_no_run_folder(
    finetune: Callable[..., Config], llama: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "huge"))
    overflowing(model)
    config = finetune("model=llama", f"init_from={model}")
    with pytest.raises(UserError, match=rf"^init_from={model}: validation loss of step 0 is nan: the model's weights"):
        train(config)
    assert not (tmp_path / "outputs").exists()


def test_a_rerun_whose_step_0_is_not_finite_restores_the_old_folder(
    finetune: Callable[..., Config], llama: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    config = finetune("model=llama", f"init_from={model}")
    train(config)
    before = {path: path.read_bytes() for path in run_folder(config).rglob("*") if path.is_file()}
    overflowing(model)
    with pytest.raises(UserError, match="validation loss of step 0 is nan"):
        train(finetune("model=llama", f"init_from={model}", "rerun=true"))
    assert {path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()} == before
