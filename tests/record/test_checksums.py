"""Checksums of a run folder: removed and changed files are found, new evaluations are added."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssa.config import Config
from ssa.errors import UserError
from ssa.record import checksums
from ssa.record.checksums import add_evaluations, damage, evaluations
from ssa.record.environment import Environment
from ssa.record.run_record import RunRecord


@pytest.fixture
def run(smoke: Callable[..., Config]) -> Path:
    with RunRecord.open(smoke("trainer.keep_last=true")) as record:
        record.begin(Environment({"host": "here"}, "+x\n"))
        record.log({"step": 1, "tokens": 8, "val/loss": 2.5})
        record.last_checkpoint.write_bytes(bytes(2**21))
        (record.folder / "wandb").mkdir()
        (record.folder / "wandb" / "log").write_text("of W&B")
        record.finish({"best/val/loss": 2.5, "odd": float("nan"), "ratio": 1 / 3}, step=1)
    return record.folder


def files(run: Path) -> list[str]:
    names = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    return sorted(name for name in names if not name.startswith("wandb"))


def test_an_unchanged_run_is_undamaged(run: Path) -> None:
    assert damage(run) == []
    assert len(files(run)) == 7


@pytest.mark.parametrize("number", range(6))
def test_each_removed_or_changed_file_is_found(run: Path, number: int) -> None:
    name = [name for name in files(run) if name != "summary.json"][number]
    content = (run / name).read_bytes()
    changed = bytes([content[0] ^ 1]) + content[1:]
    (run / name).write_bytes(changed)
    assert damage(run) == [f"{name} changed"]
    (run / name).write_bytes(content + b" ")
    assert damage(run) == [f"{name} changed"]
    (run / name).unlink()
    assert damage(run) == [f"{name} removed"]
    (run / name).write_bytes(content)
    assert damage(run) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("best/val/loss", 2.4), ("new", 1), ("sha256", "0" * 64), ("files", {"status.json": {}, "config.yaml": 5})],
)
def test_an_edited_summary_is_found(run: Path, key: str, value: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, key: value}))
    assert "summary.json changed" in damage(run)


def test_files_are_verified_before_use(run: Path) -> None:
    checksums.verify(run, "config.yaml", "checkpoints/last.ckpt", "checkpoints/none.ckpt")
    checksums.verify_summary(run)
    path = run / "checkpoints" / "last.ckpt"
    times = path.stat()
    with path.open("r+b") as file:
        file.write(b"\1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk flips a bit
    with pytest.raises(UserError, match=r"last\.ckpt: damaged, or changed since the run finished"):
        checksums.verify(run, "config.yaml", "checkpoints/last.ckpt")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "best/val/loss": 2.4}))
    with pytest.raises(UserError, match=r"summary\.json: damaged, or changed"):
        checksums.verify_summary(run)


def test_an_unreadable_summary_is_found(run: Path) -> None:
    (run / "summary.json").write_text("{")
    assert damage(run) == ["summary.json damaged"]


def test_a_large_file_is_hashed_again_only_after_a_write(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    found = checksums._checksum
    monkeypatch.setattr(checksums, "_checksum", lambda path: (read.append(path), found(path))[1])
    path = run / "checkpoints" / "last.ckpt"
    assert damage(run) == []
    assert path not in read
    os.utime(path)
    assert damage(run) == []
    assert path in read


def test_only_evaluations_are_added_to_the_checksums(run: Path) -> None:
    folder = run / "evaluation"
    folder.mkdir()
    (folder / "early.json").write_text("{}")
    os.utime(folder / "early.json", (0, 0))
    assert damage(run) == ["evaluation/early.json added"]
    add_evaluations(run, time.time())
    assert damage(run) == []
    (folder / "early.json").write_text("[1]")
    os.utime(folder / "early.json", (0, 0))
    began = time.time()
    (folder / "late.json").write_text("{}")
    (run / "metrics.jsonl").write_text("")
    add_evaluations(run, began)
    assert damage(run) == ["evaluation/early.json changed", "metrics.jsonl changed"]
    (folder / "late.json").write_text("[]")
    assert "evaluation/late.json changed" in damage(run)
    assert not list(run.parent.glob(".*seal"))


def test_what_an_evaluation_removes_is_not_missed(run: Path) -> None:
    folder = run / "evaluation"
    folder.mkdir()
    for name in ("kept.json", "stale.png", "lost.json"):
        (folder / name).write_text("{}")
    add_evaluations(run, 0)
    (folder / "lost.json").unlink()
    before = evaluations(run)
    (folder / "stale.png").unlink()
    add_evaluations(run, time.time() + 1, before)
    assert damage(run) == ["evaluation/lost.json removed"]


def test_an_edited_summary_gets_no_new_checksums(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "best/val/loss": 2.4}))
    add_evaluations(run, 0)
    assert damage(run) == ["summary.json changed"]


def test_a_run_without_checksums_is_reported(run: Path) -> None:
    (run / "summary.json").write_text('{"best/val/loss": 2.5}')
    add_evaluations(run, 0)
    assert damage(run) == ["no checksums"]
