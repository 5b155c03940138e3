"""Checkpoints: no flipped bit is used, and the one before is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import fill_disk

from ssa.config import Config
from ssa.errors import UserError
from ssa.record.checkpoint import read, save


@pytest.fixture
def contents(smoke: Callable[..., Config]) -> dict[str, Any]:
    return {"config": {"lr": 0.1, "name": "x" * 20}, "weights": torch.arange(40.0), "bias": torch.randn(3, 5)}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = all(torch.equal(one[name], other[name]) for name in ("weights", "bias"))
    return tensors and one.keys() == other.keys() and one["config"] == other["config"]


def test_no_flipped_bit_is_used(contents: dict[str, Any], tmp_path: Path) -> None:
    save(contents, tmp_path / "whole.ckpt")
    content, path = (tmp_path / "whole.ckpt").read_bytes(), tmp_path / "flipped.ckpt"
    refused = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = read(path)
        except UserError:
            refused += 1
        else:
            assert same(found, contents), f"byte {place}"  # it is in padding, or says what nobody reads
    assert refused > len(content) / 4


def test_no_truncated_checkpoint_is_used(contents: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save(contents, path)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"last\.ckpt: damaged"):
            read(path)


def test_the_checkpoint_before_is_kept(
    contents: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for number in range(3):
        save({**contents, "number": number}, last, previous)
        kept = [read(path)["number"] for path in (last, previous) if path.exists()]
        assert kept == [number, number - 1][: number + 1]
    fill_disk(monkeypatch, "last.ckpt", room=100)
    with pytest.raises(OSError, match="No space left on device"):
        save(contents, last, previous)
    assert read(last)["number"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt"]
