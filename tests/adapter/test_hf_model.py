"""``model=hf``: any model of transformers in this project's own trainer, evaluation, generation and export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from architectures import tiny_config
from pretrained_folders import VOCAB, overflowing, small, write_model
from tiny_runs import broken_at, numbers
from transformers import AutoModelForCausalLM

import ssa
from ssa.adapter.hf_model import HFModel
from ssa.command_line.compose import configured
from ssa.config import Config, parse
from ssa.errors import UserError
from ssa.evaluation.attention.measure import Batch, measure
from ssa.evaluation.attention.report import summary_of
from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.settings import EvaluateSettings
from ssa.export.base_model import with_temperatures
from ssa.export.folder import export, export_pretrained
from ssa.model.attention_stats import query_key_norms
from ssa.model.config import ModelConfig
from ssa.model.generation import generate
from ssa.pretrained.families import FAMILIES
from ssa.pretrained.load import load_pretrained, without_weights
from ssa.pretrained.source import describe, weights_hash
from ssa.record.checkpoint import read, read_best
from ssa.record.run_files import read_rows, read_summary
from ssa.record.run_model import best_weights, continue_text, load_run
from ssa.record.run_record import run_folder
from ssa.rule_names import rule
from ssa.text.tokenization import train_bpe
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train
from ssa.viz.temperature_map import token_temperatures

pytestmark = pytest.mark.usefixtures("own_modules")
IDS = torch.arange(40)[None] * 7 % VOCAB
MOVING = ("optim.temperature_lr_multiplier=100", "optim.lr=1e-3")


def write(folder: Path, model_type: str, **changes: Any) -> Path:
    """A tiny model of transformers with random weights and a tokenizer."""
    from pydoc_data.topics import topics

    config = tiny_config(model_type)
    for name, value in {"vocab_size": VOCAB, **changes}.items():
        setattr(config.get_text_config(), name, value)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_bpe(iter(topics.values()), VOCAB))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def tuned(small_text: Path, tmp_path: Path) -> Callable[..., Config]:
    """A function that makes the config of a short fine-tune of a folder, with overrides as typed."""

    def make(folder: Path, *overrides: str) -> Config:
        default = [f"init_from={folder}", "scale=smoke", "data=text", f"data.train={small_text}", "logger=none"]
        default += ["trainer.steps=6", "trainer.eval_every=3", "trainer.log_every=1", "trainer.batch_size=4"]
        default += ["trainer.checkpoint_every=1", "trainer.precision=32-true", "optim.warmup_steps=1"]
        default += ["data.max_eval_tokens=1024", "data.block_size=32", f"data.tokenizer={folder}"]
        return configured(*default, f"output_dir={tmp_path}/outputs", *overrides)

    return make


def trained(config: Config) -> list[dict[str, Any]]:
    train(config)
    return read_rows(run_folder(config))


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
@pytest.mark.parametrize("mode", ["optim.train=all", pytest.param("optim.train=temperature", marks=pytest.mark.slow)])
def test_as_this_projects_transformer(model_type: str, mode: str, tuned, tmp_path: Path) -> None:
    """Losses, perplexities, entropy and temperatures of both ways, with documents kept apart."""
    from pydoc_data.topics import topics

    write_model(tmp_path / "base", model_type)
    (tmp_path / "base" / "tokenizer.json").write_text(train_bpe(iter(topics.values()), VOCAB))
    name = {"gpt_neox": "pythia"}.get(model_type, model_type)
    how = ("model/temperature=ssa", mode, "data.document_mask=true", *MOVING)
    own, theirs = (trained(tuned(tmp_path / "base", f"model={option}", *how)) for option in (name, "hf"))
    assert len(own) == len(theirs) == 9
    for one, other in zip(own, theirs, strict=True):
        assert one.keys() == other.keys()
        timed = {key for key in one if "second" in key or "memory" in key}
        for key in one.keys() - timed:
            assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), key
    assert own[-1]["val/temperature/query/layer_01/std"] > 1e-3, "they moved"


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen3", "gemma2", "mixtral", "granitemoehybrid"])
def test_a_run_its_evaluation_and_its_text(model_type: str, tuned, tmp_path: Path) -> None:
    base = write(tmp_path / model_type, model_type)
    config = tuned(base, "model=hf", "model/temperature=ssa", *MOVING)
    assert config.variant == "ssa"
    assert config.names[:2] == ("hf", model_type)
    assert parse(config.plain()) == config
    assert "norm" not in config.plain()["model"]
    rows = trained(config)
    assert rows[0]["step"] == 0
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]
    assert rows[-1]["val/temperature_token"] > 0
    _, model, tokenizer = load_run(run_folder(config))
    layers = sum("attention_entropy/layer" in key and key.count("/") == 2 for key in rows[0])
    assert layers == len(model.layers()) == (1 if model_type == "granitemoehybrid" else 2)
    prompts = [IDS[0, :9].tolist(), IDS[0, 20:24].tolist()]
    together = generate(model, prompts, 12, greedy=True)
    for prompt, new in zip(prompts, together, strict=True):
        assert new == generate(model, [prompt], 12, greedy=True)[0]
        sequence = prompt + new
        assert model(torch.tensor([sequence]))[0, len(prompt) - 1 : -1].argmax(-1).tolist() == new
    assert len(continue_text(model, tokenizer, "The garden", 3, greedy=True)) > 3
    evaluate(EvaluateSettings(run=str(run_folder(config)), tasks=["perplexity", "attention"], stride=32))
    results = run_folder(config) / "evaluation"
    perplexity = json.loads((results / "perplexity.json").read_text())["metrics"]["loss"]["value"]
    assert perplexity == pytest.approx(read_summary(run_folder(config))["best/test/loss"], abs=1e-4)
    attention = json.loads((results / "attention.json").read_text())
    for name in ("attention_entropy", "attention_spikiness/layer_00/head_01"):
        assert attention["details"]["statistics"][f"val/{name}"] == pytest.approx(rows[-1][f"val/{name}"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["all", "temperature"])
def test_a_run_resumes_bitwise(mode: str, tuned, tmp_path: Path) -> None:
    """Also where the pretrained model is gone, if the checkpoint has all weights."""
    base = write(tmp_path / "base", "qwen3", attention_dropout=0.3)
    how = ("model=hf", "model/temperature=frequency", f"optim.train={mode}", *MOVING)
    unbroken, broken = tuned(base, *how, f"output_dir={tmp_path}/unbroken"), tuned(base, *how)
    train(unbroken)
    with pytest.raises(ZeroDivisionError), patch.object(LanguageModule, "on_train_batch_start", broken_at(4)):
        train(broken)
    checkpoint = read(run_folder(broken) / "checkpoints" / "last.ckpt")
    assert ("base" in checkpoint) == (mode == "temperature")
    if mode == "all":
        base.rename(tmp_path / "elsewhere")
    train(broken)
    assert numbers(broken) == numbers(unbroken)
    one, other = (read_best(best_weights(run_folder(each)), each).tensors for each in (unbroken, broken))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    frequencies = load_run(run_folder(broken))[1].frequencies()
    assert frequencies is not None
    assert frequencies.std() > 0.5


@pytest.mark.slow
def test_activation_checkpointing_gives_the_same_numbers(tuned, tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    how = ("model=hf", "model/temperature=ssa", *MOVING)
    plain = trained(tuned(base, *how))
    calls = []
    original = HFModel.train

    def watched(self: HFModel, mode: bool = True) -> HFModel:
        calls.append(self.checkpoint_activations)
        return original(self, mode)

    with patch.object(HFModel, "train", watched):
        config = tuned(base, *how, "trainer.checkpoint_activations=true", f"output_dir={tmp_path}/other")
        checkpointed = trained(config)
    assert any(calls)
    key = "train/loss"
    assert [row[key] for row in checkpointed if key in row] == [row[key] for row in plain if key in row]


def test_activation_checkpointing_computes_blocks_again() -> None:
    torch.manual_seed(0)
    config = tiny_config("llama")
    fields = {"n_layer": 2, "n_head": 4, "d_model": 32, "vocab_size": 120, "hf_config": "{}", "name": "hf", "size": "x"}
    model = HFModel(AutoModelForCausalLM.from_config(config), ModelConfig(**fields))
    passes: list[int] = []
    model.layers()[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    for enabled, expected in ((False, 1), (True, 2), (False, 1)):
        model.checkpoint_activations = enabled
        model.train()
        passes.clear()
        model(IDS % 120, IDS % 120, reduction="mean").backward()
        assert len(passes) == expected


@pytest.mark.parametrize("rows", ["temperatures alone", "everything", "no temperatures"])
def test_export(rows: str, tuned, tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    how = {
        "temperatures alone": ("model/temperature=ssa", "optim.train=temperature"),
        "everything": ("model/temperature=ssa",),
        "no temperatures": (),
    }[rows]
    config = tuned(base, "model=hf", *how, *MOVING)
    train(config)
    expected = load_run(run_folder(config))[1](IDS)
    folder, own = export(run_folder(config), tmp_path / "exported")
    files = {path.name for path in folder.iterdir()}
    if rows == "temperatures alone":
        assert files == {"README.md", "ssa_adapter.json", "ssa_adapter.safetensors"}
        loaded = ssa.load(AutoModelForCausalLM.from_pretrained(base), folder)
        assert torch.equal(loaded(IDS).logits, expected)
        folder, own = export(run_folder(config), tmp_path / "whole", "full")
    assert own == (rows != "no temperatures")
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own)
    assert torch.equal(loaded(IDS).logits, expected)
    described = describe(str(folder), hf=True).model
    assert torch.equal(load_pretrained(described, str(folder), seed=1)(IDS), expected)
    if own:
        assert type(AutoModelForCausalLM.from_pretrained(base)).__name__ == "Qwen3ForCausalLM"
        again = tuned(folder, "model=hf", "model/temperature=ssa", f"data.tokenizer={folder}", *MOVING)
        before, after = read_summary(run_folder(config))["best/val/loss"], trained(again)[0]["val/loss"]
        assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_a_folder_with_temperatures_is_that_model_everywhere(model_type: str, tuned, tmp_path: Path) -> None:
    """Also of a type that this project's own transformer has."""
    base = write(tmp_path / "base", model_type)
    how = ("model=hf", "model/temperature=ssa", "optim.train=temperature", "optim.lr=1e-2")
    folders = []
    for seed in (0, 1):
        config = tuned(base, *how, f"seed={seed}")
        train(config)
        folders.append(export(run_folder(config), tmp_path / f"whole{seed}", "full")[0])
    described = describe(str(folders[0]))
    assert described.has_temperatures
    expected = load_run(run_folder(tuned(base, *how, "seed=0")))[1](IDS)
    assert torch.equal(load_pretrained(described.model, str(folders[0]), seed=0)(IDS), expected)
    assert with_temperatures(str(folders[0]), None).temperature.scaled
    assert weights_hash(str(folders[0])) != weights_hash(str(folders[1])), "temperatures count"
    with pytest.raises(UserError, match=f"is {model_type} .model_type.; choose model=hf"):
        tuned(folders[0], "model=llama", f"data.tokenizer={folders[0]}")
    again = tuned(folders[0], *how, f"data.tokenizer={folders[0]}")
    train(again)
    folder, own = export(run_folder(again), tmp_path / "again")
    assert own, "temperatures alone would not fit a base that has some"
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert torch.equal(loaded(IDS).logits, load_run(run_folder(again))[1](IDS))
    card = (folder / "README.md").read_text()
    assert "the package `ssa`" in card
    assert "temperature_rules.py" not in card


def test_messages_of_folders_and_settings(tuned, tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    config = tuned(base, "model=hf", "model/temperature=ssa", "optim.train=temperature")
    train(config)
    folder, _ = export(run_folder(config), tmp_path / "alone")
    with pytest.raises(UserError, match=r"temperatures alone; ssa.load\(base_model, FOLDER\)"):
        describe(str(folder))
    with pytest.raises(UserError, match="dtype=bf16: temperatures alone are float32; valid: float32, or as=full"):
        export(run_folder(config), tmp_path / "other", dtype="bf16")
    described = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**described, "rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match=r"config.json: rms_norm_eps=0.5; the run has 1e-06: restore it"):
        load_run(run_folder(config))
    with patch("importlib.util.find_spec", lambda name: None), pytest.raises(UserError, match="needs transformers"):
        without_weights(config.model, VOCAB)


def test_sizes_that_layers_have_each_for_itself(tmp_path: Path) -> None:
    """Gemma 4: its config refuses to name one for all."""
    base = write(tmp_path / "base", "gemma4_text", vocab_size_per_layer_input=VOCAB)
    model = load_pretrained(describe(str(base), hf=True).model, str(base), seed=0)
    assert model(IDS).shape == (1, IDS.size(1), VOCAB)


@pytest.mark.parametrize(("model_type", "differ"), [("mistral", False), ("gemma2", True)])
def test_visible_keys_of_sliding_windows(model_type: str, differ: bool, tmp_path: Path) -> None:
    base = write(tmp_path / "base", model_type, sliding_window=6)
    model = load_pretrained(describe(str(base), hf=True).model, str(base), seed=0)
    measured = measure(model, Batch(IDS, None, torch.ones(VOCAB).numpy()))
    assert measured.layers_differ == differ
    assert measured.n.max() == (IDS.size(1) if differ else 6)
    assert ("attention_dilution" in summary_of(measured)) != differ


def test_export_without_a_run(tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    model = with_temperatures(str(base), "token")
    folder, _ = export_pretrained(model, str(base), tmp_path / "exported")
    plain = AutoModelForCausalLM.from_pretrained(base)
    expected = plain(IDS).logits
    assert torch.equal(ssa.load(plain, folder)(IDS).logits, expected)
    with pytest.raises(UserError, match=r"as=ssa: this project's own class is no Qwen3ForCausalLM; valid: auto, full"):
        export_pretrained(model, str(base), tmp_path / "other", "ssa")


@pytest.mark.slow
def test_evaluation_of_a_pretrained_model(tmp_path: Path, small_text: Path) -> None:
    base = write(tmp_path / "base", "olmo2")
    settings = {"init_from": str(base), "text": str(small_text), "context": 32, "output_dir": str(tmp_path / "out")}
    evaluate(EvaluateSettings(tasks=["perplexity", "attention"], limit=2, **settings))
    (folder,) = (tmp_path / "out" / "pretrained").iterdir()
    metrics = json.loads((folder / "evaluation" / "attention.json").read_text())["metrics"]
    assert metrics["attention_entropy"]["value"] > 0
    assert "query_key_norm" not in metrics, "queries and keys are normalized: no such matrix has the logits"


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_norms_as_of_this_projects_transformer(model_type: str, tmp_path: Path) -> None:
    write_model(tmp_path, model_type)
    own = load_pretrained(small(model_type), str(tmp_path), seed=0)
    theirs = load_pretrained(describe(str(tmp_path), hf=True).model, str(tmp_path), seed=0)
    expected, found = query_key_norms(own), query_key_norms(theirs)
    assert expected is not None
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert theirs.count_parameters() == own.count_parameters()
    torch.testing.assert_close(theirs(IDS), own(IDS), rtol=1e-4, atol=1e-5)


def test_logits_that_are_more_than_a_matrix_product(tmp_path: Path) -> None:
    """The model's own: soft caps (Gemma 2), scales (Granite), a bias (Phi)."""
    for model_type in ("gemma2", "granite", "phi"):
        base = write(tmp_path / model_type, model_type)
        model = load_pretrained(describe(str(base), hf=True).model, str(base), seed=0)
        expected = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
        assert torch.equal(model(IDS), expected)
        losses = torch.nn.functional.cross_entropy(expected[0, :-1], IDS[0, 1:], reduction="none")
        torch.testing.assert_close(model(IDS[:, :-1], IDS[:, 1:])[0], losses)
        model(IDS[:, :-1], IDS[:, 1:], reduction="mean").backward()
        assert all(parameter.grad is not None for parameter in model.temperature_parameters().values())


@pytest.mark.slow
def test_attention_that_cannot_be_measured(tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attention sinks: the run trains, and its record says nan."""
    base = write(tmp_path / "base", "gpt_oss")
    config = tuned(base, "model=hf", "model/temperature=ssa")
    rows = trained(config)
    assert "entropy and spikiness of attention are not measured" in capsys.readouterr().out
    assert rows[0]["val/attention_entropy"] != rows[0]["val/attention_entropy"]
    assert rows[0]["val/temperature/query/layer_00/mean"] == pytest.approx(1, abs=1e-3)
    _, model, _ = load_run(run_folder(config))
    assert len(token_temperatures(model, IDS[0].tolist())) == IDS.size(1)
    with pytest.raises(UserError, match=r"attention: cannot be measured: model\.layers\.0\.self_attn"):
        evaluate(EvaluateSettings(run=str(run_folder(config)), tasks=["attention"]))
    assert read_summary(run_folder(config), complete=True)["status"] == "finished"


REFUSED = {
    "restart": ("opt", ("data.document_mask=true",), "data.document_mask=true: the layers of OPTForCausalLM do not"),
    "linear attention": ("mamba", (), "num_attention_heads: not set, of a mamba"),
    "other attention": ("falcon", ("model/temperature=ssa",), "model: FalconForCausalLM has no attention that goes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_are_refused(name: str, tuned, tmp_path: Path) -> None:
    model_type, overrides, message = REFUSED[name]
    base = write(tmp_path / "base", model_type)
    with pytest.raises(UserError, match=message):
        train(tuned(base, "model=hf", *overrides))


def test_damaged_weights_are_refused(tuned, tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    model = describe(str(base), hf=True).model
    overflowing(base)
    with pytest.raises(UserError, match="its logits are not finite"):
        load_pretrained(model, str(base), seed=0)
    (base / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=f"init_from={base}: model.safetensors is damaged or truncated"):
        load_pretrained(model, str(base), seed=0)


CONFIGS = {
    "no model": ([], "model=hf: names no model by itself; add init_from=FOLDER_OR_HUB_ID"),
    "size": (["init_from=X", "model.n_layer=3"], "model.n_layer=3: init_from=X has 2"),
    "size option": (["init_from=X", "model/size=nano"], "model/size=nano: init_from=X has n_layer=2, not 3; the size"),
    "fsdp": (["init_from=X", "trainer.strategy=fsdp"], "trainer.strategy=fsdp: not with model=hf; valid with this"),
    "plan": (["init_from=X", "plan.show=true"], "plan.show=true: not with model=hf; valid with this project's"),
    "dropout": (["init_from=X", "model.dropout=0.1"], "dropout"),
    "another option": (
        ["model=llama", "init_from=X"],
        "model=llama: init_from=X is qwen3 (model_type); choose model=hf",
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_are_refused(name: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    overrides, message = CONFIGS[name]
    chosen = [] if "model=llama" in overrides else ["model=hf"]
    typed = [one.replace("X", str(base)) for one in overrides]
    with pytest.raises(UserError) as refused:
        configured(*chosen, "data.block_size=32", *typed)
    assert message.replace("X", str(base)) in str(refused.value)


def test_other_configs_are_refused(tmp_path: Path) -> None:
    base = write(tmp_path / "base", "qwen3")
    described = json.loads((base / "config.json").read_text())
    for changes, message in (
        ({"model_type": "t5"}, "model_type=t5: no causal language model of the installed transformers"),
        ({"model_type": None}, "model_type=null: no causal language model"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantized weights are not trained here"),
        ({"hidden_size": "wide"}, "not valid for qwen3"),
    ):
        (base / "config.json").write_text(json.dumps({**described, **changes}))
        with pytest.raises(UserError, match=f"init_from={base}: config.json: {message}"):
            describe(str(base), hf=True)


def test_rules_are_those_of_the_adapter(tmp_path: Path) -> None:
    """Every rule starts, and `rule` of transformers' models has the same parameters."""
    base = write(tmp_path / "base", "qwen3")
    for name in ("ssa", "ssa_mlp", "constant", "ssmax"):
        config = replace(describe(str(base), hf=True).model, temperature=rule(name).starting(pretrained=True))
        model = load_pretrained(config, str(base), seed=3)
        adapted = ssa.adapt(AutoModelForCausalLM.from_pretrained(base), name, seed=3)
        assert torch.equal(model(IDS), adapted(IDS).logits)
