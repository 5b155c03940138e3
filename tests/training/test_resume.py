"""Runs that resume: after kills, signals, full disks and damaged checkpoints, on the same inputs and settings."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import programs
import pytest
from conftest import ROOT
from full_disk import fill_disk
from tiny_runs import folder, numbers, same, tiny_config, weights

from ssa.config import Config
from ssa.errors import UserError
from ssa.record.run_files import load_config
from ssa.record.run_model import load_run
from ssa.text.token_cache import prepare
from ssa.training.lit_module import LanguageModule
from ssa.training.train import train

tiny = pytest.fixture(tiny_config)


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


def start_killed(config: Config, at_step: int, by: str = "SIGKILL", hook: str = "training_step") -> programs.Process:
    """Start the config in a process that gets a signal when it enters a hook after a number of steps."""
    script = ROOT / "tests" / "training" / "killed_run.py"
    return programs.start(str(script), json.dumps(config.plain()), by, str(at_step), hook, cwd=ROOT)


def killed(config: Config, at_step: int, by: str = "SIGKILL", hook: str = "training_step") -> int:
    """`start_killed` and wait for its end; the exit code."""
    with start_killed(config, at_step, by, hook) as process:
        code = process.ended()
    assert code != 0 or by != "SIGKILL", process.printed
    return code


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
    with start_killed(config, 399) as first:
        while not (folder(config) / "metrics.jsonl").exists() and first.code is None:
            time.sleep(0.02)
        with pytest.raises(UserError, match=f"in use by process {first.pid}"):
            train(config)


def test_resume_with_another_precision_is_refused(tiny) -> None:
    config = tiny()
    killed(config, at_step=3)
    path = folder(config) / "environment.json"
    path.write_text(path.read_text().replace("bf16-mixed", "other").replace("32-true", "other"))
    with pytest.raises(UserError, match="precision has changed since this run began"):
        train(config)


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
