"""Complete runs on a small text: exact resume, pairing, accumulation, records."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from conftest import ROOT
from tiny_runs import folder, numbers, rows, same, tiny_config, weights

from ssa.device import resolve_precision
from ssa.errors import UserError
from ssa.model.transformer import Block, Transformer
from ssa.record.checksums import damage
from ssa.record.wandb_names import at_wandb
from ssa.record.wandb_pictures import KEYS
from ssa.text.token_blocks import Batch, EvaluationBatches
from ssa.text.token_cache import prepare
from ssa.training import lit_module
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train

SUMMARY_KEYS = """
run_id status model size temperature data seed parameters.total parameters.non_embedding parameters.temperature
steps tokens best/val/loss best/val/perplexity best/val/bits_per_byte best/val/word_perplexity
best/val/attention_entropy best/val/attention_entropy_normalized best/val/attention_spikiness best/test/perplexity
reference/val/unigram_perplexity reference/val/bigram_perplexity tokens_per_second wall_seconds device peak_memory_bytes
"""
BF16 = resolve_precision("auto", torch.device("cpu")) == "bf16-mixed"
tiny = pytest.fixture(tiny_config)


def test_a_run_writes_its_record_and_learns(tiny) -> None:
    config = tiny("trainer.steps=40", "trainer.eval_every=20")
    summary = train(config)
    assert [key for key in SUMMARY_KEYS.split() if key not in summary] == []
    written = json.loads((folder(config) / "summary.json").read_text())
    assert {key: value for key, value in written.items() if key not in ("files", "sha256")} == summary
    assert damage(folder(config)) == []
    assert json.loads((folder(config) / "status.json").read_text())["status"] == "finished"
    losses = [row["train/loss"] for row in rows(config) if "train/loss" in row]
    assert len(losses) == 40
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5
    validations = [row for row in rows(config) if "val/loss" in row]
    assert [row["step"] for row in validations] == [20, 40]
    assert [row["tokens"] for row in validations] == [20 * 4 * 64, 40 * 4 * 64]
    for name in ("attention_entropy/layer_00", "attention_entropy/layer_00/head_00", "attention_spikiness/layer_00"):
        assert f"val/{name}" in validations[0]
    assert "val/temperature/value/layer_00/std" in validations[0]
    best = min(validations, key=lambda row: row["val/loss"])
    assert summary["best_step"] == best["step"]
    assert summary["best/val/loss"] == pytest.approx(best["val/loss"], rel=1e-6)


def test_a_finished_run_is_not_repeated_without_rerun(tiny, capsys) -> None:
    config = tiny()
    first = train(config)
    written = (folder(config) / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert train(config) == first
    assert (folder(config) / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written
    assert "finished before" in capsys.readouterr().out
    train(tiny("rerun=true"))
    assert (folder(config) / "checkpoints" / "last.ckpt").stat().st_mtime_ns != written


def test_a_finished_run_keeps_the_best_weights_alone(tiny, tmp_path, capsys) -> None:
    config, both = tiny("trainer.keep_last=false"), tiny(f"output_dir={tmp_path}/both")
    first = train(config)
    train(both)
    kept = [path.name for path in (folder(config) / "checkpoints").iterdir()]
    assert kept == ["best.ckpt"]
    assert config.run_id == both.run_id
    assert same(weights(config, "best"), weights(both, "best"))
    assert train(config) == first
    assert "finished before" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"trainer\.steps: 8 -> 9.*: resume it unchanged, or start a new run"):
        train(tiny(f"resume={folder(config)}", "trainer.steps=9"))
    assert damage(folder(config)) == []


def test_every_training_pass_belongs_to_a_step(tiny, monkeypatch, capsys) -> None:
    passes: list[bool] = []
    forward = Transformer.forward

    def counted(model: Transformer, *arguments: Any, **named: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        return forward(model, *arguments, **named)

    monkeypatch.setattr(Transformer, "forward", counted)
    train(tiny())
    assert sum(passes) == 8 * 2, "two micro-batches a step"
    assert re.search(r"^step 2/8  .* ETA \d+:\d\d$", capsys.readouterr().out, re.MULTILINE)


def test_runs_of_one_config_are_bitwise_equal(tiny, tmp_path) -> None:
    one, other = tiny(), tiny(f"output_dir={tmp_path}/other")
    train(one)
    train(other)
    assert one.run_id == other.run_id
    assert same(weights(one), weights(other))
    assert numbers(one) == numbers(other)


@pytest.mark.slow
def test_logging_and_saving_intervals_change_no_number(tiny, tmp_path) -> None:
    one = tiny()
    cadence = ("trainer.log_every=3", "trainer.checkpoint_every=5", "trainer.probe_sequences=1")
    other = tiny(*cadence, "logger=wandb", "logger.mode=offline", f"output_dir={tmp_path}/other")
    third = tiny("trainer.eval_every=8", f"output_dir={tmp_path}/third")
    for config in (one, other, third):
        train(config)
    assert same(weights(one), weights(other))
    assert same(weights(one), weights(third))


def test_variants_see_the_same_batches_and_differ_only_in_temperature(tiny) -> None:
    ssa, vanilla = tiny(), tiny("model=gpt2")
    train(ssa)
    train(vanilla)
    first = {config.model.name: numbers(config)[0]["train/loss"] for config in (ssa, vanilla)}
    assert first["ssa_gpt2"] == pytest.approx(first["gpt2"], abs=2e-3)  # near the identity, on the same batch
    assert set(weights(ssa)) > set(weights(vanilla))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_accumulated_micro_batches_equal_the_big_batch(tiny, dropout: float) -> None:
    settings = ("trainer.precision=32-true", f"model.dropout={dropout}")
    accumulated = tiny("trainer.micro_batch_size=1", *settings)
    big = tiny("trainer.micro_batch_size=4", *settings)
    train(accumulated)
    train(big)
    for one, other in zip(numbers(accumulated), numbers(big), strict=True):
        assert one["step"] == other["step"]
        if "train/loss" in one:
            assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)
            assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-4)
            assert one["train/lr"] == other["train/lr"]


@pytest.mark.parametrize("backend", ["auto", "math"])
def test_checkpointed_activations_change_no_number(tiny, tmp_path, monkeypatch, backend: str) -> None:
    settings = ("model.dropout=0.2", f"trainer.attention_backend={backend}")
    plain = tiny(*settings)
    checkpointed = tiny(*settings, "trainer.checkpoint_activations=true", f"output_dir={tmp_path}/checkpointed")
    assert plain.run_id == checkpointed.run_id
    train(plain)
    passes = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *rest: passes.append(self.training) or forward(self, *rest))
    train(checkpointed)
    assert sum(passes) == 2 * (8 * 2) * 2, "two layers, 8 steps of two micro-batches, and once more each"
    assert same(weights(plain), weights(checkpointed))
    assert numbers(plain) == numbers(checkpointed)


def test_a_non_finite_loss_stops_the_run(tiny) -> None:
    # the rate rises from 0 by 1e17 a step, on a loss that stays finite for the first
    config = tiny("optim.lr=1e18", "optim.grad_clip=null", "trainer.checkpoint_every=1", "optim.warmup_steps=7")
    with pytest.raises(UserError, match=r"not finite at step \d+: loss .*, lr .*, gradient norm .*last\.ckpt") as error:
        train(config)
    status = json.loads((folder(config) / "status.json").read_text())
    assert status["status"] == "failed"
    assert status["error"] in f"TrainingDiverged: {error.value}"
    assert f"not finite at step {status['step'] + 1}" in status["error"]


def test_losses_read_late_are_those_read_after_each_step(tiny, monkeypatch) -> None:
    each, late = tiny("trainer.log_every=3"), tiny("trainer.log_every=3", "experiment=late")
    train(each)
    monkeypatch.setattr(lit_module, "_computes_ahead", lambda device: True)
    train(late)
    assert numbers(late) == numbers(each)


def test_a_loss_that_is_not_finite_is_found_before_the_next_checkpoint(tiny, monkeypatch) -> None:
    monkeypatch.setattr(lit_module, "_computes_ahead", lambda device: True)
    config = tiny("optim.lr=1e18", "optim.grad_clip=null", "optim.warmup_steps=7", "trainer.log_every=1000")
    with pytest.raises(UserError, match=r"not finite at step [2-9]: loss .*, lr .*, gradient norm "):
        train(config)
    last = folder(config) / "checkpoints" / "last.ckpt"
    assert not last.exists() or all(value.isfinite().all() for value in weights(config).values())


def test_a_loss_that_is_not_finite_from_the_start_leaves_no_folder(tiny, monkeypatch) -> None:
    config = tiny()
    monkeypatch.setattr(Transformer, "forward", lambda self, inputs, *_, **__: self.head.weight.sum() * float("nan"))
    with pytest.raises(UserError, match=r"^loss is nan: the model's weights are damaged, or its values overflow"):
        train(config)
    assert not folder(config).parent.exists()


BEYOND = 2_000_000_000  # sequences that no address space holds


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (
            "model.n_layer=1000000000",
            r"^model: n_layer=1000000000, .*: the weights need [\d,]+ GB in float32; this mac",
        ),
        (f"trainer.batch_size={BEYOND} trainer.micro_batch_size={BEYOND} data.block_size=1024", "out of memory on"),
    ],
)
def test_a_run_beyond_the_memory(tiny, overrides: str, error: str) -> None:
    config = tiny(*overrides.split())
    with pytest.raises(UserError, match=error):
        train(config)
    assert not folder(config).exists()


def test_a_tokenizer_that_loses_text(tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "[SEP]": 1, "the": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "words.json"))
    config = tiny(f"data.tokenizer={tmp_path}/words.json")
    summary = train(config)
    printed = capsys.readouterr().out
    assert re.search(
        r"note     the tokenizer loses text: (\d+) of \1 sampled documents differ after decoding, 9\d\.\d% of their "
        "tokens are unknown; bits/byte and word perplexity are left out",
        printed,
    )
    assert re.search(r"validation +[\d.]+ +[\d.]+ +– ", printed)
    assert "best/test/perplexity" in summary
    assert f"{summary['loss_of_text']} (–)" in printed
    of_text = ("bits_per_byte", "word_perplexity")
    assert not [key for row in [summary, *rows(config)] for key in row if key.endswith(of_text)]
    assert prepare(config.data).split("validation").lossless is False


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["model=ssa_gpt2"],
        ["model=ssa_pythia", "model/temperature=frequency"],
        ["model=ssa_llama", "model/temperature=qk_norm", "model.n_kv_head=1", "data.document_mask=true"],
    ],
)
def test_compiled_equals_eager(tiny, overrides: list[str]) -> None:
    eager = tiny("trainer.precision=32-true", *overrides)
    compiled = tiny("trainer.precision=32-true", "trainer.compile=true", *overrides)
    train(eager)
    train(compiled)
    for one, other in zip(numbers(eager), numbers(compiled), strict=True):
        for name in one:
            assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-3), name
    assert weights(eager).keys() == weights(compiled).keys()


@pytest.mark.slow
def test_a_sweep_ends_with_a_row_for_all_seeds_of_a_variant(small_text, tmp_path) -> None:
    text = ["scale=smoke", "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512", "trainer.steps=4"]
    short = ["optim.warmup_steps=1", "trainer.eval_every=2", "logger=none", f"output_dir={tmp_path}/outputs"]
    job = [sys.executable, str(ROOT / "train.py"), "-m", "model=gpt2,ssa_gpt2", "seed=0,1", *text, *short]
    done = subprocess.run(job, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300)
    _, _, last = done.stdout.partition("Runs that differ in their seed alone.")
    rows = {line.split()[0]: line.split() for line in last.splitlines() if " 2 " in line}
    assert rows.keys() == {"vanilla", "SSA"}
    losses = [
        json.loads(path.read_text())["best/val/loss"]
        for path in sorted((tmp_path / "outputs" / "main").glob("gpt2-*-vanilla-*/summary.json"))
    ]
    assert rows["vanilla"][2] == f"{sum(losses) / 2:.4f}"


@pytest.mark.wandb_server
def test_a_sweep_of_two_jobs_is_two_complete_wandb_runs(small_text, tmp_path) -> None:
    server = os.environ.get("SSA_WANDB_SERVER")
    if not server:
        pytest.skip("SSA_WANDB_SERVER names no W&B server")
    text = ["scale=smoke", "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512"]
    job = [sys.executable, str(ROOT / "train.py"), "-m", "model=gpt2,ssa_gpt2", *text, f"output_dir={tmp_path}/outputs"]
    command = [sys.executable, server, "--dir", str(tmp_path / "wandb"), "--", *job]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    mirrored = {path.parent.name: path.parent for path in (tmp_path / "wandb").glob("*/*/*/meta.json")}
    assert len(mirrored) == 2
    for run in (tmp_path / "outputs" / "main").iterdir():
        (there,) = (path for name, path in mirrored.items() if name.startswith(run.name))
        lines = (there / "history.jsonl").read_text().splitlines()
        pictures = set(KEYS.values())
        sent = [{k: v for k, v in json.loads(line).items() if k[0] != "_" and k not in pictures} for line in lines]
        kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert sent == [at_wandb(row, "layer") for row in kept]
        assert json.loads((there / "meta.json").read_text())["state"] == "finished"
        config = json.loads((there / "config.json").read_text())
        assert config["model"]["temperature"]["name"] == ("ssa" if "-ssa-" in run.name else "none")


def test_dropout_depends_on_the_seed(tiny) -> None:
    seeds = []
    for seed in (1, 2):
        config = tiny("model.dropout=0.5", f"seed={seed}")
        splits = {name: prepare(config.data).split(name) for name in ("validation", "test")}
        module = LanguageModule(config, Transformer(config.model, 512), splits, lambda row: None)
        seeds.append(module._dropout_seeds(Batch(torch.zeros(3, 8), torch.zeros(3, 8), first_sample=5)))
    values = torch.cat(seeds)
    assert values.shape == (6, 1 + 3 * config.model.n_layer)
    assert values.unique().numel() == values.numel()


def test_train_temperature_changes_only_temperatures(tiny) -> None:
    config = tiny("optim.train=temperature")
    train(config)
    start = Transformer(config.model, 512, config.seed).state_dict()
    trained = weights(config, "best")
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    assert changed == {name for name in start if ".temperature." in name}


def test_document_mask_equals_documents_one_by_one(tiny, tmp_path) -> None:
    text = tmp_path / "short.jsonl"
    documents = ({"text": f"Document {i} " + "says this. " * (i % 7)} for i in range(999))
    text.write_text("".join(json.dumps(document) + "\n" for document in documents))
    overrides = [f"data.train={text}", "data.block_size=48", "data.max_eval_tokens=2000"]
    together, apart = tiny(*overrides), tiny(*overrides, "data.document_mask=true")
    assert train(together)["best/val/loss"] != train(apart)["best/val/loss"]
    split = prepare(apart.data).split("validation").prefix(2000)
    model = Transformer(apart.model, split.tokenizer.vocab_size)
    model.load_state_dict(weights(apart, "best"))
    losses = []
    for inputs, targets in EvaluationBatches(split, 48, 1):
        starts = [0, *(i for i in range(1, inputs.size(1)) if inputs[0, i] == split.tokenizer.end_of_text)]
        for start, end in itertools.pairwise([*starts, inputs.size(1)]):
            losses.append(model(inputs[:, start:end], targets[:, start:end])[0])
    got = json.loads((folder(apart) / "summary.json").read_text())["best/val/loss"]
    assert got == pytest.approx(torch.cat(losses).mean().item(), abs=2e-3 if BF16 else 1e-5)


def test_token_frequencies_are_counted_and_kept(tiny) -> None:
    config = tiny("model/temperature=frequency")
    train(config)
    split = prepare(config.data).split("train")
    kept = weights(config, "best")["log_frequency"]
    counts = np.bincount(split.tokens, minlength=len(kept))
    of_text = kept[torch.from_numpy(split.tokens.astype(np.int64))]
    assert of_text.mean().item() == pytest.approx(0, abs=1e-3)
    assert of_text.std().item() == pytest.approx(1, abs=1e-3)
    assert np.all(np.diff(kept.numpy()[np.argsort(counts)]) >= 0)
