"""Complete runs on a small text: exact resume, pairing, accumulation, records."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from conftest import ROOT
from full_disk import fill_disk

from ssa.config import Config
from ssa.device import resolve_precision
from ssa.errors import UserError
from ssa.model.transformer import Transformer
from ssa.record.checksums import damage
from ssa.record.run_files import load_config
from ssa.record.run_model import load_run
from ssa.text.token_blocks import EvaluationBatches
from ssa.text.token_cache import prepare
from ssa.training import lit_module
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train

TINY = ["trainer.steps=8", "trainer.eval_every=4", "trainer.checkpoint_every=2", "trainer.log_every=1"]
TINY += ["trainer.batch_size=4", "trainer.micro_batch_size=2", "optim.warmup_steps=2", "optim.lr=3e-3"]
SUMMARY_KEYS = """
run_id status model size temperature data seed parameters.total parameters.non_embedding parameters.temperature
steps tokens best/val/loss best/val/perplexity best/val/bits_per_byte best/val/word_perplexity
best/val/attention_entropy best/val/attention_entropy_normalized best/val/attention_spikiness best/test/perplexity
reference/val/unigram_perplexity reference/val/bigram_perplexity tokens_per_second wall_seconds device peak_memory_bytes
"""
BF16 = resolve_precision("auto", torch.device("cpu")) == "bf16-mixed"
TIMINGS = ("tokens_per_second", "memory", "seconds")


def folder(config: Config) -> Path:
    return Path(config.output_dir) / config.experiment / config.run_id


def rows(config: Config) -> list[dict]:
    return [json.loads(line) for line in (folder(config) / "metrics.jsonl").read_text().splitlines()]


def numbers(config: Config) -> list[dict]:
    """The rows without times and memory."""
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMINGS)} for row in rows(config)]


def weights(config: Config, name: str = "last") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder(config) / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return checkpoint["state_dict"] if name == "last" else checkpoint["model"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def tiny(smoke: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *overrides: smoke(*TINY, *overrides)


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


@pytest.mark.parametrize("finished", [True, False])
def test_inputs_are_compared_by_content(tiny, tmp_path: Path, small_text: Path, capsys, monkeypatch, finished) -> None:
    text, tokenizer = tmp_path / "texts" / "a.txt", tmp_path / "tokenizer.json"
    text.parent.mkdir()
    text.write_bytes(small_text.read_bytes())
    tokenizer.write_text(prepare(tiny().data).tokenizer.definition)
    config = tiny(f"data.train={text.parent}/*.txt", f"data.tokenizer={tokenizer}")
    if finished:
        train(config)
    else:
        stop_at(4, monkeypatch, config)
    for path, content in ((text, small_text.read_text().replace("the", "teh", 1)), (tokenizer, "{}")):
        before = path.read_text()
        path.write_text(content)
        with pytest.raises(UserError, match=rf"{path} has changed since {folder(config)} began: .*or .* rerun=true"):
            train(config)
        path.write_text(before)  # another time, the same content
    (text.parent / "b.txt").write_text("more")
    with pytest.raises(UserError, match=r"data\.train: .*b\.txt is new since"):
        train(config)
    (text.parent / "b.txt").unlink()
    text.rename(text.with_name("renamed.txt"))
    capsys.readouterr()
    assert train(config)["status"] == "finished"
    assert "not compared" not in capsys.readouterr().out


def test_a_finished_run_does_not_need_its_text(tiny, tmp_path: Path, small_text: Path, capsys) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(small_text.read_bytes())
    config = tiny(f"data.train={text}")
    first = train(config)
    text.unlink()
    assert train(config) == first
    assert f"data.train: {text}: not available, so not compared" in capsys.readouterr().out


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


def test_accumulated_micro_batches_equal_the_big_batch(tiny) -> None:
    accumulated = tiny("trainer.precision=32-true", "trainer.micro_batch_size=1")
    big = tiny("trainer.precision=32-true", "trainer.micro_batch_size=4")
    train(accumulated)
    train(big)
    for one, other in zip(numbers(accumulated), numbers(big), strict=True):
        assert one["step"] == other["step"]
        if "train/loss" in one:
            assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-5)
            assert one["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=1e-4)
            assert one["train/lr"] == other["train/lr"]


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


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    """Train until a bug in a step."""
    training_step = LanguageModule.training_step

    def stopped(module: LanguageModule, *batch: Any) -> Any:
        if module.step == step:
            raise ZeroDivisionError
        return training_step(module, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(LanguageModule, "training_step", stopped)
        with pytest.raises(ZeroDivisionError):
            train(config)


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file: in a checkpoint, of a weight."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damaged", "resumed_at"),
    [(["last"], 2), (["best"], 4), (["last", "best"], 2), (["previous"], 4), (["last", "previous"], None)],
)
def test_a_damaged_checkpoint_is_noticed(tiny, tmp_path, monkeypatch, capsys, damaged, resumed_at) -> None:
    unbroken, broken = tiny(), tiny(f"output_dir={tmp_path}/broken")
    train(unbroken)
    stop_at(4, monkeypatch, broken)
    checkpoints = folder(broken) / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    for name in damaged:
        flip(checkpoints / f"{name}.ckpt")
    if resumed_at is None:
        with pytest.raises(UserError, match=r"last.ckpt: damaged.*previous.ckpt: damaged.*; rerun=true starts over$"):
            train(broken)
        return
    capsys.readouterr()
    train(broken)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed"))
    assert line.startswith(f"resumed  at step {resumed_at}")
    assert ("damaged" in line) == (damaged != ["previous"])
    assert same(weights(unbroken), weights(broken))
    assert same(weights(unbroken, "best"), weights(broken, "best"))
    assert numbers(unbroken) == numbers(broken)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_a_changed_config_is_noticed(tiny, monkeypatch) -> None:
    config = tiny()
    stop_at(4, monkeypatch, config)
    path = folder(config) / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.003", "lr: 0.007"))
    changed = load_config(folder(config)).model_copy(update={"resume": str(folder(config))})
    with pytest.raises(UserError, match=r"last.ckpt: its config is another .*optim.lr: 0.003 -> 0.007"):
        train(changed)
    with pytest.raises(UserError, match=r"best.ckpt: its config is another .*optim.lr: 0.003 -> 0.007"):
        load_run(folder(config))


KILLED = """
import json, os, signal, sys
from ssa.training import lit_module
from ssa.config import parse
from ssa.training.train import train
from ssa.model.transformer import Transformer
number, step, hook = getattr(signal, sys.argv[2]), int(sys.argv[3]), sys.argv[4]
before = getattr(lit_module.LanguageModule, hook)
def hooked(self, *args, **kwargs):
    if self.step == step:
        setattr(lit_module.LanguageModule, hook, before)
        os.kill(os.getpid(), number)
    return before(self, *args, **kwargs)
setattr(lit_module.LanguageModule, hook, hooked)
train(parse(json.loads(sys.argv[1])))
"""


def killed(config: Config, at_step: int, by: str = "SIGKILL", hook: str = "training_step") -> int:
    """Run the config in a process that gets a signal when it enters a hook after a number of steps."""
    command = [sys.executable, "-c", KILLED, json.dumps(config.plain()), by, str(at_step), hook]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode != 0 or by != "SIGKILL", done.stdout + done.stderr
    return done.returncode


@pytest.mark.parametrize(
    ("step", "hook"),
    [
        (3, "training_step"),  # after one, before the next
        (5, "configure_gradient_clipping"),  # in the middle of a step, in the second epoch
    ],
)
def test_a_killed_run_resumes_bitwise(tiny, tmp_path, step: int, hook: str) -> None:
    # 4 sequences a step of a train split of 17 blocks or so: step 5 is in the second epoch
    options = ("data.train=" + str(tmp_path / "short.txt"), "model.dropout=0.1")
    (tmp_path / "short.txt").write_text(short_text())
    unbroken, broken = tiny(*options), tiny(*options, f"output_dir={tmp_path}/broken")
    train(unbroken)
    assert killed(broken, step, hook=hook) == -signal.SIGKILL
    train(broken)
    assert same(weights(unbroken), weights(broken))
    assert same(weights(unbroken, "best"), weights(broken, "best"))
    assert numbers(unbroken) == numbers(broken)


def short_text() -> str:
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())[:9000]


@pytest.mark.parametrize(
    ("by", "step", "hook", "saved"),
    [
        ("SIGINT", 2, "training_step", 3),
        ("SIGTERM", 4, "validation_step", 4),
        ("SIGHUP", 3, "training_step", 4),
    ],
)
def test_a_signal_saves_and_prints_how_to_resume(tiny, tmp_path, by: str, step: int, hook: str, saved: int) -> None:
    unbroken, broken = tiny(), tiny(f"output_dir={tmp_path}/broken")
    train(unbroken)
    assert killed(broken, step, by=by, hook=hook) == 130
    status = json.loads((folder(broken) / "status.json").read_text())
    assert (status["status"], status["step"]) == ("interrupted", saved)
    train(broken.model_copy(update={"resume": str(folder(broken))}))
    assert same(weights(unbroken), weights(broken))
    assert numbers(unbroken) == numbers(broken)


@pytest.mark.parametrize("file", ["last.ckpt", "best.ckpt", "metrics.jsonl"])
def test_a_full_disk_is_one_line_and_the_run_resumes(tiny, tmp_path, monkeypatch, file: str) -> None:
    unbroken, broken = tiny(), tiny(f"output_dir={tmp_path}/broken")
    train(unbroken)
    with monkeypatch.context() as patch:
        fill_disk(patch, file, room=100)
        with pytest.raises(UserError, match=f"{file}: No space left on device; rerun the command to resume") as refused:
            train(broken)
    assert "\n" not in str(refused.value)
    status = json.loads((folder(broken) / "status.json").read_text())
    assert (status["status"], status["error"]) == ("failed", f"DiskError: {refused.value}")
    assert not list(folder(broken).rglob("*.partial"))
    train(broken)
    assert same(weights(unbroken), weights(broken))
    assert numbers(unbroken) == numbers(broken)


def test_a_second_process_is_refused(tiny, tmp_path) -> None:
    config = tiny("trainer.steps=400")
    command = [sys.executable, "-c", KILLED, json.dumps(config.plain()), "SIGKILL", "399", "training_step"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (folder(config) / "metrics.jsonl").exists() and first.poll() is None:
            time.sleep(0.1)
        with pytest.raises(UserError, match=f"in use by process {first.pid}"):
            train(config)
    finally:
        first.kill()
        first.wait()


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
        sent = [{k: v for k, v in json.loads(line).items() if not k.startswith("_")} for line in lines]
        kept = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert sent == kept
        assert json.loads((there / "meta.json").read_text())["state"] == "finished"
        config = json.loads((there / "config.json").read_text())
        assert config["model"]["temperature"]["name"] == ("ssa" if "ssa" in run.name.split("-")[0] else "none")


def test_dropout_depends_on_the_seed(tiny) -> None:
    losses = []
    for seed in (1, 2):
        config = tiny("model.dropout=0.5", f"seed={seed}")
        module = LanguageModule.__new__(LanguageModule)
        object.__setattr__(module, "config", config)
        object.__setattr__(module, "_device", torch.device("cpu"))
        LanguageModule.on_train_batch_start(module, (), 0)
        losses.append(torch.rand(4))
    assert not torch.equal(*losses)


def test_resume_with_another_precision_is_refused(tiny) -> None:
    config = tiny()
    killed(config, at_step=3)
    path = folder(config) / "environment.json"
    path.write_text(path.read_text().replace("bf16-mixed", "other").replace("32-true", "other"))
    with pytest.raises(UserError, match="precision has changed since this run began"):
        train(config)


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
