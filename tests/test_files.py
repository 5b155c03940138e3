from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssa import files
from ssa.errors import UserError
from ssa.files import (
    cache_root,
    expanded,
    hash_of,
    hash_of_file,
    is_locked,
    locked,
    parse_json,
    partial_path,
    read_checked,
    read_json,
    read_json_or_none,
    replacing,
    to_json,
    write_atomic,
    write_checked,
    write_json,
)
from ssa.record import checkpoint
from ssa.record.run_files import load_config


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "é")
    assert path.read_bytes() == "é".encode()
    write_atomic(path, b"\xff")
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("half" * 10_000 + "\ud800")
    assert path.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(IsADirectoryError):
        _write_folder(folder, ".")
    assert list(tmp_path.iterdir()) == []
    folder.mkdir()  # an empty folder is replaced, one with content is not
    _write_folder(folder, "a")
    with pytest.raises(OSError, match="not empty"):
        _write_folder(folder, "b")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "a"]


def _write_folder(folder: Path, name: str) -> None:
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / name).write_text("")


def test_json_keeps_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    values = {"a": [1, -math.inf, {"b": math.inf}], "c": "é", "d": None}
    write_json(path, values)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert read_json(path) == read_json_or_none(path) == values
    assert math.isnan(parse_json(to_json({"a": math.nan}, indent=None), "line 1")["a"])


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"[]", b"\xff", b"[" * 100_000])
def test_damaged_json_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged: "):
        read_json(path)
    assert read_json_or_none(path) is None
    path.unlink()
    with pytest.raises(UserError, match=r"has no a\.json"):
        read_json(path)
    assert read_json_or_none(path) is None


def test_hashes_ignore_the_order_of_keys() -> None:
    assert hash_of({"a": 1, "b": (2,)}) == hash_of({"b": [2], "a": 1})
    assert hash_of(["a"]) == hashlib.sha256(b'["a"]').hexdigest()


HOLD = """
import sys
from pathlib import Path
from ssa.files import locked
with locked(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def test_a_lock_is_exclusive_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "new" / ".a.lock"
    assert not is_locked(lock)
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        assert is_locked(lock)
        with pytest.raises(UserError, match="in use"), locked(lock, in_use="in use"):
            pytest.fail("held by another process")
        threading.Timer(0.3, other.stdin.close).start()
        with locked(lock, waiting="waiting"):
            assert is_locked(lock)
        assert capsys.readouterr().out == "waiting\n"
    assert not is_locked(lock)
    assert list(lock.parent.iterdir()) == []


@pytest.mark.parametrize(("number", "held"), [(errno.EACCES, True), (errno.EROFS, False), (errno.EIO, False)])
def test_a_lock_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, held: bool) -> None:
    lock = tmp_path / ".a.lock"
    lock.touch()

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    assert is_locked(lock) is held


def test_whoever_waits_for_a_lock_is_alone_with_it(tmp_path: Path) -> None:
    lock, inside, most = tmp_path / ".a.lock", 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with locked(lock):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside, list(tmp_path.iterdir())) == (1, 0, [])


def test_cache_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSA_CACHE_DIR", str(tmp_path / "env"))
    assert cache_root(str(tmp_path / "given")) == tmp_path / "given"
    assert cache_root(None) == tmp_path / "env"
    monkeypatch.delenv("SSA_CACHE_DIR")
    assert cache_root(None) == Path.home() / ".cache" / "ssa"


def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown_user(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("SSA_CACHE_DIR", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown_user)
    with pytest.raises(UserError, match=r"cache: ~/.cache/ssa: no home folder; set data.cache_dir or SSA_CACHE_DIR"):
        cache_root(None)
    assert cache_root(str(tmp_path)) == tmp_path
    assert expanded("~/a") == Path("~/a")


@pytest.mark.parametrize("read", [read_json, checkpoint.read, lambda path: load_config(path.parent)])
def test_a_git_lfs_pointer_is_named(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "it's" / "config.yaml"
    path.parent.mkdir()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value) == (
        f"{path}: a Git LFS pointer, not the file itself; "
        f"get it with Git LFS installed: git -C {shlex.quote(str(path.parent))} lfs pull"
    )


def test_checked_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert read_checked(path) is None
    write_checked(path, {"a": ["é", 1]})
    assert read_checked(path) == {"a": ["é", 1]}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    path.write_text(path.read_text().replace("1", "2"))
    assert read_checked(path) is None
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache: cannot write to .*file"):
        write_checked(tmp_path / "file" / "a.json", {})


def test_partial_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    path, dead = tmp_path / "a[1].json", 2**22 + 5  # above the largest process id
    host = partial_path(path).name.split(".")[-2].rpartition("-")[0]
    gone = [tmp_path / f".a[1].json.{process}.partial" for process in (f"{host}-{dead}", "elsewhere-1")]
    kept = [tmp_path / f".a[1].json.{process}.partial" for process in (f"{host}-1", "elsewhere-2")]
    kept += [tmp_path / f".b.json.{host}-{dead}.partial"]
    gone[0].mkdir()
    for file in (gone[0] / "inside", gone[1], *kept):
        file.write_text("")
    os.utime(gone[1], (time.time() - 90_000,) * 2)  # over a day ago
    write_atomic(path, "new")
    assert {*tmp_path.iterdir()} == {path, *kept}


def test_large_files_are_hashed_again_only_when_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"one")
    monkeypatch.setattr(files, "ALWAYS_HASHED", 2)
    first = hash_of_file(path, tmp_path)
    assert first == hash_of_file(path) == hashlib.sha256(b"one").hexdigest()
    status = path.stat()
    path.write_bytes(b"two")
    assert hash_of_file(path, tmp_path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"one")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert hash_of_file(path, tmp_path) == first
    path.write_bytes(b"six")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    six = hashlib.sha256(b"six").hexdigest()
    assert hash_of_file(path, tmp_path) == six, "a change that keeps size and time of modification"
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", None)
        assert hash_of_file(path, tmp_path) == six, "the file is not read again"
    memory = tmp_path / "file_hashes.json"
    memory.write_text(memory.read_text().replace(six, first))
    assert hash_of_file(path, tmp_path) == six, "a damaged memory is not believed"
    (tmp_path / "file").write_text("")
    assert hash_of_file(path, tmp_path / "file" / "no folder") == hashlib.sha256(b"six").hexdigest()
