"""Programs under faults: each ends with one line and the right exit code, and the same command then completes the work.

What it leaves is compared with what an undisturbed program leaves, bit for bit.  ``SSA_FAULT_SEED`` repeats a failure;
``SSA_FAULT_FIGURES`` names a file to which a line for each fault is appended.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from bench import Bench, open_bench
from harness import different, left

from ssa.errors import EXIT_INTERRUPTED, UserError
from ssa.record import checkpoint
from ssa.record.checksums import damage
from ssa.record.run_files import load_status

bench = pytest.fixture(open_bench, scope="module")
SEED = os.environ.get("SSA_FAULT_SEED") or str(random.SystemRandom().randrange(10**6))
KILLS_OF_A_COMMAND = 8  # at most
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
YEAR = 365 * 86400


def sizes(some: dict[str, int], full: dict[str, int]) -> pytest.MarkDecorator:
    """Run a test for each program with so many faults, as part of the slow tests and of all faults."""
    cases = [pytest.param(*case, marks=pytest.mark.slow, id=case[0]) for case in some.items()]
    cases += [pytest.param(*case, marks=pytest.mark.faults, id=f"{case[0]}-full") for case in full.items()]
    return pytest.mark.parametrize(("name", "count"), cases)


def numbers_for(*what: object) -> random.Random:
    """Random numbers that depend on the seed, which is printed if the test fails."""
    print(f"SSA_FAULT_SEED={SEED}")
    return random.Random(f"{SEED} {what}")


def complete(bench: Bench, name: str, folder: Path, said: Iterable[object]) -> None:
    """Check that the program, run again, leaves what an undisturbed one leaves."""
    with bench.start(name, folder) as program:
        if name == "export" and (folder / "files" / "exported").exists():  # the fault came after the last step
            program.check_one_line()
        else:
            assert program.ended() == 0, (*said, program.printed)
    assert different(left(folder), bench.reference(name).left) == [], said
    damaged = {path: found for path in folder.rglob("summary.json") if (found := damage(path.parent))}
    assert not damaged, (*said, damaged)
    assert not psutil.wait_procs(bench.starter.descendants(), timeout=30)[1], said


def record(**fault: Any) -> None:
    print(fault)
    if file := os.environ.get("SSA_FAULT_FIGURES"):
        with open(file, "a", encoding="utf-8") as out:
            out.write(json.dumps(fault) + "\n")


@pytest.mark.timeout(7200)
@sizes(
    {"train": 3, "evaluate": 2, "cache": 1, "export": 1, "grid": 1, "sweep": 1},
    {"train": 90, "evaluate": 60, "grid": 25, "sweep": 25, "cache": 20, "export": 10, "report": 5, "generate": 5},
)
def test_kills(bench: Bench, tmp_path: Path, name: str, count: int) -> None:
    numbers, done, command = numbers_for("kill", name), 0, 0
    while done < count:
        folder, hits = bench.prepare(name, tmp_path / f"{command}"), []
        promised: dict[Path, bytes] = {}
        command += 1
        for _ in range(min(numbers.randint(1, KILLS_OF_A_COMMAND), count - done)):
            hit = kill(bench, name, folder, numbers)
            if hit is None:
                break
            hits.append(hit)
            promised |= kept(folder / "files")
        done += len(hits)
        complete(bench, name, folder, hits)
        if all(hit["processes"] == "first" for hit in hits):  # the launcher alone: its runs went on
            assert name == "train" or not list(folder.rglob("environment-*.json")), hits
        for path, content in promised.items():
            assert path.read_bytes().startswith(content), (path, hits)
        for hit in hits:
            record(fault="kill", program=name, command=command, **hit)


def kill(bench: Bench, name: str, folder: Path, numbers: random.Random) -> dict[str, Any] | None:
    """Start the program and kill all its processes or one of them; what was hit, or None if it ended before."""
    whole, alone, within = bench.reference(name), numbers.random() < 0.5, numbers.random() < 0.6
    place: dict[str, Any] = {"processes": "one" if alone else "all"}
    fault = f"kill {numbers.randint(1, whole.operations)} {numbers.randrange(1000)}" if within else ""
    with bench.start(name, folder, fault) as program:
        if within:
            while program.code is None and not program.hit:
                time.sleep(0.001)
        else:
            program.wait(operations=1)
            program.wait(seconds=(after := numbers.uniform(0, whole.seconds)))
        if program.code is not None and not program.hit:
            assert program.code == 0, program.printed
            return None
        if within:
            operation, taken, size, path = program.hit[0].split(" ", 3)
            place |= {"operation": operation, "taken": int(taken), "bytes": int(size), "path": path}
        else:
            place |= {"seconds": round(after, 3)}
            first = psutil.Process(program.pid)
            with suppress(psutil.NoSuchProcess):
                chosen = numbers.choice([first, *first.children(recursive=True)])
                if alone:
                    place["processes"] = "first" if chosen == first else "other"
                    chosen.kill()
        if alone and program.ended() not in (0, -signal.SIGKILL):
            program.check_one_line()
    return place


def kept(files: Path) -> dict[Path, bytes]:
    """What a kill must not cost: the rows up to the last checkpoint, and finished runs."""
    found = {}
    for path in files.rglob("metrics.jsonl"):
        step = 0
        with suppress(UserError):
            step = int(checkpoint.read(path.parent / "checkpoints" / "last.ckpt")["global_step"])
        with suppress(UserError):
            if (status := load_status(path.parent)).status == "finished":  # its last checkpoint is gone
                step = status.step
                found[path.with_name("status.json")] = path.with_name("status.json").read_bytes()
        lines = path.read_bytes().splitlines(keepends=True)
        found[path] = b"".join(line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step)
    return found


@pytest.mark.timeout(7200)
@sizes(
    {"train": 2, "evaluate": 1, "cache": 1, "export": 1, "generate": 1},
    {"train": 40, "evaluate": 30, "grid": 15, "sweep": 15, "cache": 30, "export": 20, "report": 8, "generate": 8},
)
def test_a_disk_that_fails(bench: Bench, tmp_path: Path, name: str, count: int) -> None:
    """Full after some bytes, or failing from an operation on, for good or for a while."""
    numbers, whole = numbers_for("disk", name), bench.reference(name)
    for case in range(count):
        number, folder = numbers.choice(DISK), bench.prepare(name, tmp_path / f"{case}")
        if number in (errno.ENOSPC, errno.EDQUOT) and numbers.random() < 0.5:
            fault = f"full {number} {numbers.randrange(whole.bytes)}"
        else:
            lasting = numbers.choice([1, 3, 10**9])
            fault = f"fail {number} {numbers.randint(1, whole.operations)} {lasting}"
        with bench.start(name, folder, fault) as program:
            code = program.ended()
            said = (errno.errorcode[number], fault, program.hit[:3], program.printed)
            line = program.check_one_line() if code else ""
        logs = "".join(path.read_text() for path in (folder / "files").rglob("*.log"))
        assert "Traceback" not in logs, (*said, logs)
        complete(bench, name, folder, said)
        record(fault=errno.errorcode[number], program=name, how=fault, hit=program.hit[:1], code=code, line=line)


@pytest.mark.timeout(7200)
@sizes({"train": 1, "evaluate": 1}, {"train": 15, "evaluate": 10, "cache": 6, "grid": 6, "sweep": 6})
def test_signals(bench: Bench, tmp_path: Path, name: str, count: int) -> None:
    numbers, whole = numbers_for("signal", name), bench.reference(name)
    for case in range(count):
        number, folder = numbers.choice(SIGNALS), bench.prepare(name, tmp_path / f"{case}")
        with bench.start(name, folder) as program:
            program.wait(operations=1)
            program.wait(seconds=numbers.uniform(0, whole.seconds))
            program.send(number)
            code = program.ended()
            assert "Traceback" not in program.printed, (number, program.printed)
            if code not in (0, EXIT_INTERRUPTED):  # the signal came after all was done
                assert (code, different(left(folder), whole.left)) == (-number, []), (number, program.printed)
        complete(bench, name, folder, [number, program.printed])
        record(fault=number.name, program=name, code=code)


@sizes({"train": 1}, dict.fromkeys(["train", "evaluate", "generate", "export", "report", "grid", "sweep", "cache"], 1))
@pytest.mark.parametrize("out", ["unread", "closed"])
def test_output_that_nobody_reads(bench: Bench, tmp_path: Path, name: str, count: int, out: str) -> None:
    folder = bench.prepare(name, tmp_path / "it")
    with bench.start(name, folder, out=out) as program:
        assert program.ended() == 0
    assert different(left(folder), bench.reference(name).left) == []
    record(fault=f"output {out}", program=name)


@pytest.mark.timeout(7200)
@sizes({"train": 1, "grid": 1}, {"train": 5, "evaluate": 5, "grid": 3, "sweep": 3, "cache": 5, "export": 3})
def test_two_starts_at_once(bench: Bench, tmp_path: Path, name: str, count: int) -> None:
    numbers, whole = numbers_for("two", name), bench.reference(name)
    for case in range(count):
        folder = bench.prepare(name, tmp_path / f"{case}")
        with bench.start(name, folder) as one:
            one.wait(seconds=numbers.uniform(0, whole.seconds) * numbers.choice([0, 1]))
            with bench.start(name, folder) as other:
                codes = [program.ended() for program in (one, other)]
                for program in (one, other):
                    if program.code:
                        line = program.check_one_line()
                        assert "in use" in line or "already running" in line or "exists" in line, line
        assert 0 in codes, (one.printed, other.printed)
        assert different(left(folder), whole.left) == []
        record(fault="two starts", program=name, codes=codes)


@pytest.mark.timeout(7200)
@sizes({"train": 1}, {"train": 4, "evaluate": 2, "grid": 2, "sweep": 2, "cache": 2})
def test_a_clock_set_back(bench: Bench, tmp_path: Path, name: str, count: int) -> None:
    """Resumed a year before the files were written."""
    numbers = numbers_for("clock", name)
    for case in range(count):
        folder, hit = bench.prepare(name, tmp_path / f"{case}"), None
        hit = kill(bench, name, folder, numbers)
        for path in (folder / "files").rglob("*"):
            os.utime(path, (time.time() + YEAR, time.time() + YEAR))
        with bench.start(name, folder, SSA_FAULT_CLOCK=str(-YEAR)) as program:
            assert program.ended() == 0, program.printed
        assert different(left(folder), bench.reference(name).left) == [], hit
        record(fault="clock set back", program=name)


def checkpoints(files: Path) -> list[Path]:
    """Those in a folder in which a program works."""
    with suppress(FileNotFoundError):  # removed while it is read
        return list(files.rglob("*.ckpt"))
    return []


@pytest.mark.timeout(7200)
@sizes({"train": 3, "evaluate": 2}, {"train": 40, "evaluate": 40, "export": 10, "generate": 10, "report": 10})
def test_damaged_bytes(bench: Bench, tmp_path: Path, name: str, count: int) -> None:
    """One byte of a file: of an interrupted run for ``train``, else of a finished one."""
    numbers, folder = numbers_for("damage", name), bench.prepare(name, tmp_path / "it")
    files = folder / "files"
    if name == "train":
        with bench.start(name, folder) as program:
            while len(checkpoints(files)) < 2:
                assert program.code is None
                time.sleep(0.001)
    before = shutil.copytree(files, tmp_path / "before")
    paths = sorted(path.relative_to(before) for path in before.rglob("*") if path.is_file() and path.stat().st_size)
    for path in numbers.choices(paths, k=count):
        shutil.rmtree(files)
        shutil.copytree(before, files)
        content = bytearray((files / path).read_bytes())
        place = numbers.randrange(len(content))
        content[place] ^= 1 << numbers.randrange(8)
        (files / path).write_bytes(content)
        with bench.start(name, folder) as program:
            code = program.ended()
            said = (str(path), place, program.printed)
            if code:
                program.check_one_line()
            else:
                wrong = {*different(left(folder), bench.reference(name).left)} - {str(path)}
                assert {name for name in wrong if not name.endswith("manifest.json")} == set(), said
        record(fault="damaged byte", program=name, path=str(path), code=code)
