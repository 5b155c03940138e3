"""No secret is in any file that a run, an evaluation, a report or a sweep writes, wherever it stood before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import ROOT
from planted_secrets import IN_TEXT, TOKENS

from ssa.files import write_json
from ssa.record.run_files import load_config, load_status

SMALL = ["scale=smoke", "model=gpt2", "data=text", "data.tokenizer=bpe-512", "data.block_size=32", "trainer.steps=4"]
SMALL += ["optim.warmup_steps=0", "trainer.eval_every=2", "data.max_eval_tokens=1024"]
PLACES = [token for token in TOKENS.values() if len(token) < 100]  # a folder's name has 255 bytes
SECRETS = {secret for _, secret in IN_TEXT.values()} | set(TOKENS.values())


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The programs in a git repository of their own, with secrets in all that git knows."""
    folder = tmp_path / "checkout"
    for name in ("ssa", "conf", "sweeps"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "evaluate.py", "report.py"):
        shutil.copy(ROOT / name, folder)
    (folder / "notes.txt").touch()
    token = TOKENS["GitHub"]
    url = f"https://me:{token}@example.invalid/a.git"
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.invalid"]
    for command in (
        ["init", "-q", "-b", f"try-{token}"],
        ["remote", "add", "origin", url],
        ["add", "."],
        [*identity, "commit", "-q", "-m", f"try {token}"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True)
    (folder / "notes.txt").write_text("\n".join(text for text, _ in IN_TEXT.values()))
    for token in TOKENS.values():
        (folder / f"notes-{token}.txt").touch()
    return folder


@pytest.fixture
def run(checkout: Path, tmp_path: Path) -> Callable[..., None]:
    """A function that runs a program of the checkout with secrets in its environment."""
    hidden = {f"SECRET_{number}": token for number, token in enumerate(SECRETS)}
    wandb = {"WANDB_API_KEY": IN_TEXT["W&B key"][1], "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config")}
    environment = {**os.environ, **hidden, **wandb, "PYTHONPATH": str(checkout), "WANDB_MODE": "offline"}
    environment["SSA_CACHE_DIR"] = str(tmp_path / "cache")

    def run(*arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr

    return run


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder, and every member of an archive."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        yield path, path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((path / name, archive.read(name)) for name in archive.namelist())


def leaks(folder: Path) -> list[str]:
    return [
        f"{path}: {secret}" for path, content in contents(folder) for secret in SECRETS if secret.encode() in content
    ]


@pytest.mark.slow
def test_no_secret_is_written(run: Callable[..., None], checkout: Path, tmp_path: Path, small_text: Path) -> None:
    texts = tmp_path / "texts" / PLACES[0] / PLACES[1] / f"{PLACES[2]}.txt"
    texts.parent.mkdir(parents=True)
    shutil.copy(small_text, texts)
    outputs = tmp_path / "outputs"
    tags = ",".join(f"'{token}'" for token in TOKENS.values())
    overrides = [*SMALL, f"data.train={texts}", f"logger.tags=[{tags}]", f"logger.entity={PLACES[3]}"]
    where = f"output_dir={outputs}"
    run("train.py", *overrides, "save_diff=true", where)
    (folder,) = (path.parent for path in outputs.glob("main/*/status.json"))
    assert (folder / "uncommitted.diff").stat().st_size > 1000
    assert list((folder / "wandb").rglob("*.wandb"))
    assert load_config(folder).run_id == folder.name
    assert load_config(folder).data.train == str(tmp_path / "texts" / "[redacted]" / "[redacted]" / "[redacted].txt")
    run("evaluate.py", f"run={folder}", "tasks=perplexity", f"text={texts}")
    run("train.py", *overrides, where)  # finished before
    assert load_status(folder).attempt == 1
    run("report.py", f"runs={outputs}", f"to={outputs}/report")
    sweep = checkout / "sweeps" / "tiny.yaml"
    sweep.write_text("space: {optim.lr: {type: float, low: 0.001, high: 0.01}}\n")
    run("-m", "sweeps", str(sweep), "trials=2", "jobs=1", where, f"train={','.join(overrides)}")
    assert leaks(outputs) == []
    assert leaks(tmp_path / "cache") == []


@pytest.mark.slow
def test_a_run_whose_config_holds_a_secret_resumes(run: Callable[..., None], tmp_path: Path, small_text: Path) -> None:
    texts = tmp_path / PLACES[0] / "text.txt"
    texts.parent.mkdir()
    shutil.copy(small_text, texts)
    overrides = [*SMALL, f"data.train={texts}", "logger=none", f"output_dir={tmp_path}/outputs"]
    overrides.append("trainer.keep_last=true")
    run("train.py", *overrides)
    (folder,) = (path.parent for path in (tmp_path / "outputs").glob("main/*/status.json"))
    metrics, status = (folder / "metrics.jsonl").read_bytes(), asdict(load_status(folder))
    (folder / "summary.json").unlink()  # as a kill after the last checkpoint leaves it
    write_json(folder / "status.json", {**status, "status": "running"})
    with pytest.raises(
        AssertionError, match=r"error: data\.train=.*: recorded without its secret; give it again: resume="
    ):
        run("train.py", f"resume={folder}")
    run("train.py", f"resume={folder}", f"data.train={texts}")
    assert (load_status(folder).status, load_status(folder).attempt) == ("finished", 2)
    assert (folder / "metrics.jsonl").read_bytes() == metrics
