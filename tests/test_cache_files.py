from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ssa import cache_files
from ssa.cache_files import cache_root, hash_of_file, read_checked, write_checked


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSA_CACHE_DIR", str(tmp_path / "env"))
    assert cache_root(str(tmp_path / "given")) == tmp_path / "given"
    assert cache_root(None) == tmp_path / "env"
    monkeypatch.delenv("SSA_CACHE_DIR")
    assert cache_root(None) == Path.home() / ".cache" / "ssa"


def test_checked_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert read_checked(path) is None
    write_checked(path, {"a": ["é", 1]})
    assert read_checked(path) == {"a": ["é", 1]}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    path.write_text(path.read_text().replace("1", "2"))
    assert read_checked(path) is None


def test_large_files_are_hashed_again_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"one")
    monkeypatch.setattr(cache_files, "ALWAYS_HASHED", 2)
    first = hash_of_file(path, tmp_path)
    assert first == hashlib.sha256(b"one").hexdigest()
    status = path.stat()
    path.write_bytes(b"two")
    assert hash_of_file(path, tmp_path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"one")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hash_of_file(path, tmp_path) == first
    path.write_bytes(b"six")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hash_of_file(path, tmp_path) == first, "size and time are the same: not read"
    (tmp_path / "file").write_text("")
    assert hash_of_file(path, tmp_path / "file" / "no folder") == hashlib.sha256(b"six").hexdigest()
