"""Training runs in their own processes: finished ones skipped, failed ones named, interrupted ones resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from ssa.errors import UserError
from ssa.launch.pool import train
from ssa.launch.run import Run
from ssa.record.run_files import load_status, read_environment, read_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def run(small_text: Path, tmp_path: Path) -> Callable[..., Run]:
    """A function that makes a tiny run, with overrides as typed."""
    small = ("scale=smoke", "model=gpt2", "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512")
    short = ("trainer.steps=4", "optim.warmup_steps=1", "trainer.eval_every=2", "data.max_eval_tokens=1024")

    def make(*overrides: str) -> Run:
        where = ("logger=none", f"output_dir={tmp_path}/outputs")
        return Run((*small, *short, *where, *overrides), setting=" ".join(overrides))

    return make


@pytest.fixture
def console(tmp_path: Path) -> Console:
    return Console(file=(tmp_path / "printed").open("w"), soft_wrap=True)


def test_finished_runs_are_not_run_again(run: Callable[..., Run], console: Console, tmp_path: Path) -> None:
    runs = [run("seed=0"), run("seed=1"), run("seed=0")]
    folders = train(runs, jobs=2, console=console)
    assert folders[0] == folders[2] != folders[1]
    assert all(load_status(folder).status == "finished" for folder in folders)
    assert read_environment(folders[1])["command"][0] == "train.py"
    assert "seed=1" in read_environment(folders[1])["command"]
    written = [(folder / "status.json").stat().st_mtime_ns for folder in folders]
    assert train(runs, jobs=2, console=console) == folders
    assert [(folder / "status.json").stat().st_mtime_ns for folder in folders] == written
    assert "2 of 2 runs have finished before" in (tmp_path / "printed").read_text()
    again = train([run("seed=0")], jobs=1, console=console, rerun=True)
    assert again == [folders[0]]
    replaced = folders[0].with_name(f"{folders[0].name}.replaced-1")
    assert [row.get("val/loss") for row in read_rows(replaced)] == [
        row.get("val/loss") for row in read_rows(folders[0])
    ]


def test_a_finished_run_with_another_text_has_failed(
    run: Callable[..., Run], console: Console, small_text: Path, tmp_path: Path
) -> None:
    text = tmp_path / "own.txt"
    text.write_bytes(small_text.read_bytes())
    runs = [run("seed=0"), run(f"data.train={text}")]
    train(runs, jobs=2, console=console)
    text.write_bytes(small_text.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"1 run failed: data\.train="):
        train(runs, jobs=2, console=console)
    printed = (tmp_path / "printed").read_text()
    assert f"data.train: {text} has changed since {runs[1].folder} began" in printed
    assert "1 of 2 runs have finished before" in printed
    train(runs[1:], jobs=1, console=console, rerun=True)
    train(runs, jobs=1, console=console)


def test_a_failed_run_is_named_and_the_others_finish(run: Callable[..., Run], console: Console, tmp_path: Path) -> None:
    lost = run("data.train=nowhere/*.txt")
    with pytest.raises(UserError, match=r"^1 run failed: data\.train=nowhere.*matches no file.*\.log\)"):
        train([lost, run("seed=0")], jobs=2, console=console)
    printed = (tmp_path / "printed").read_text()
    assert "failed: data.train=nowhere/*.txt: error: data.train=nowhere/*.txt: matches no file" in printed
    assert load_status(run("seed=0").folder).status == "finished"


def test_refused_overrides_stop_everything_at_once(run: Callable[..., Run], console: Console) -> None:
    with pytest.raises(UserError, match=r"trainer\.stepz: unknown key"):
        train([run("seed=0"), run("+trainer.stepz=3")], jobs=1, console=console)
    assert not run("seed=0").folder.exists()
