"""Output that nobody can read: it is dropped, and the work goes on to its end."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

JOB = """
import sys
from pathlib import Path
from rich.console import Console
from ssa.command_line.settings import program
from ssa.config import Section

class Settings(Section):
    to: str

def job(settings):
    for number in range(2000):
        print("a line of output", number, flush=True)
        Console().print("a line of rich", number)
        print("a line of errors", file=sys.stderr)
    Path(settings.to).write_text("done")

sys.exit(program(Settings, job, name="job.py", purpose="Do it."))
"""


@contextmanager
def closed_pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@contextmanager
def closed_terminal() -> Iterator[int]:
    master, terminal = pty.openpty()
    os.close(master)
    yield terminal
    os.close(terminal)


def run(*command: str, output: int) -> int:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], stdout=output, stderr=output, cwd=ROOT, env=env).returncode


@pytest.mark.parametrize("gone", [closed_pipe, closed_terminal])
def test_a_job_ends_though_nobody_reads(gone, tmp_path: Path) -> None:
    with gone() as output:
        assert run("-c", JOB, f"to={tmp_path}/a", output=output) == 0
    assert (tmp_path / "a").read_text() == "done"


def test_a_job_ends_with_output_closed_from_the_start(tmp_path: Path) -> None:
    command = ["bash", "-c", 'exec "$@" >&- 2>&-', "bash", sys.executable, "-c", JOB, f"to={tmp_path}/a"]
    assert subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    assert (tmp_path / "a").read_text() == "done"


@pytest.mark.parametrize("program", [("-m", "experiments"), ("-m", "sweeps"), ("evaluate.py",), ("train.py",)])
def test_a_help_page_without_a_reader(program: tuple[str, ...]) -> None:
    with closed_pipe() as output:
        done = subprocess.run(
            [sys.executable, *program, "--help"],
            stdout=output,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert (done.returncode, done.stderr) == (0, b"")


_PRINTS = """
import sys
from ssa.command_line.output import keep_writable
keep_writable()
try:
    print("a" * 100000, flush=True)
except OSError as error:
    sys.exit(print(f"error: {error.filename}: {error.strerror}", file=sys.stderr) or 2)
"""


def test_a_log_on_a_full_disk_does_not_end_the_work() -> None:
    prints = "from ssa.command_line.output import log_output\nwith log_output():\n    print('a' * 100000, flush=True)\n"
    with open("/dev/full", "wb") as log:
        done = subprocess.run([sys.executable, "-c", f"{prints}raise SystemExit(3)"], stdout=log, cwd=ROOT)
    assert done.returncode == 3


def test_a_full_disk_for_output_is_an_error() -> None:
    with open("/dev/full", "wb") as output:
        for program in (("-m", "sweeps"), ("evaluate.py",), ("train.py",)):
            assert run(*program, "--help", output=output.fileno()) != 0
        done = subprocess.run(
            [sys.executable, "-c", _PRINTS], stdout=output, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert (done.returncode, done.stderr) == (2, "error: standard output: No space left on device\n")
