"""KEY=VALUE command lines: values, mistakes, help pages and exit codes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from conftest import ROOT
from pydantic import Field, model_validator

from ssa.command_line.settings import help_text, parse, program
from ssa.config import PositiveInt, Section
from ssa.errors import UserError


class Example(Section):
    """One field of each kind."""

    run: Annotated[str, Field(min_length=1)] = Field(description="a folder")
    text: str = "none"
    count: PositiveInt = Field(64, description="how many, in a description long enough to be wrapped on the help page")
    rate: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 0.5
    layer: Annotated[int, Field(ge=0)] | None = None
    flag: bool = False
    kind: Literal["query", "value"] = "query"
    either: Literal["on", "off"] | None = None
    file: str | None = None
    names: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits(self) -> Example:
        if self.count == 13:
            raise ValueError("count=13: unlucky; valid: any other")
        return self


READ = {
    "text=a=b, (c): 'd' \"e\" ${f} {g} [h] #i\n": ("text", "a=b, (c): 'd' \"e\" ${f} {g} [h] #i\n"),
    "text=": ("text", ""),
    "text=3": ("text", "3"),
    "text=true": ("text", "true"),
    "text=null": ("text", "null"),
    "text= é日本 🙂 ": ("text", " é日本 🙂 "),
    "text=-x": ("text", "-x"),
    "count=3": ("count", 3),
    "count=010": ("count", 10),
    "rate=1": ("rate", 1.0),
    "rate=1e-3": ("rate", 0.001),
    "layer=0": ("layer", 0),
    "layer=null": ("layer", None),
    "flag=true": ("flag", True),
    "flag=false": ("flag", False),
    "kind=value": ("kind", "value"),
    "either=on": ("either", "on"),
    "either=null": ("either", None),
    "file=null": ("file", None),
    "file=a b.txt": ("file", "a b.txt"),
    "names=[a,b c]": ("names", ["a", "b c"]),
    "names=a,b c": ("names", ["a", "b c"]),
    "names=": ("names", []),
}


@pytest.mark.parametrize("argument", READ)
def test_a_value_is_read_by_its_type(argument: str) -> None:
    key, expected = READ[argument]
    value = getattr(parse(Example, ["run=x", argument]), key)
    assert value == expected
    assert type(value) is type(expected)


REFUSED = {
    "cuont=3": ["cuont:", "did you mean count?", "valid: run, text, count"],
    "run.x=3": ["run.x:", "run is a value"],
    "world": ["world:", "not KEY=VALUE", "quoted"],
    "": ["not KEY=VALUE"],
    "=3": ["=3:", "not KEY=VALUE"],
    "--count=3": ["--count=3:", "without dashes"],
    "-c": ["-c:", "unknown flag", "--help"],
    "run=y": ["run: given twice"],
    "count=0": ["count=0:", "valid: > 0"],
    "count=1e3": ["count=1000.0:", "whole number"],
    "count=": ["count=:", "whole number"],
    "count=many": ["count=many:", "whole number, not text"],
    "count=true": ["count=true:", "whole number"],
    "count=null": ["count=null:", "whole number"],
    "count=[1": ["count=[1:", "whole number"],
    "count=13": ["count=13: unlucky"],
    "rate=3": ["rate=3:", "valid: > 0 and <= 2"],
    "rate=nan": ["rate=NaN:"],
    "layer=-1": ["layer=-1:", "valid: >= 0"],
    "layer=first": ["layer=first:", "whole number"],
    "flag=maybe": ["flag=maybe:", "true or false"],
    "flag=1": ["flag=1:", "true or false"],
    "kind=vaule": ["kind=vaule:", "did you mean value?", "valid: query, value"],
    "either=true": ["either=true:", "valid: on, off"],
    "names=a,1": ["names=1:", "expected text"],
    "text=\udcff": ["text=\\udcff:", "UTF-8"],
}


@pytest.mark.parametrize("argument", REFUSED)
def test_one_line_for_a_wrong_argument(argument: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(Example, ["run=x", argument])
    assert [part for part in REFUSED[argument] if part not in str(refused.value)] == [], refused.value
    assert "\n" not in str(refused.value)


def test_required_keys() -> None:
    with pytest.raises(UserError, match=r"^run: not set; write run=VALUE$"):
        parse(Example, ["count=3"])
    with pytest.raises(UserError, match=r"^run=: expected text of at least one character$"):
        parse(Example, ["run="])


def test_a_mistyped_key_is_reported_before_the_missing_one() -> None:
    with pytest.raises(UserError, match=r"^runs: unknown key, did you mean run\?"):
        parse(Example, ["runs=x"])


def test_help_shows_kind_limits_default_and_description() -> None:
    page = help_text(Example, "example.py", "Do it.", ["run=x"])
    lines = page.splitlines()
    assert lines[:3] == ["Do it.", "", "usage: python example.py KEY=VALUE ..."]
    assert lines[-1] == "  python example.py run=x"
    assert max(map(len, lines)) <= 100
    for field in Example.model_fields:
        assert any(line.startswith(f"  {field}=") for line in lines)
    words = " ".join(page.split())
    assert "run=TEXT a folder (required)" in words
    assert "wrapped on the help page (> 0; default: 64)" in words
    assert "rate=NUMBER (> 0 and <= 2; default: 0.5)" in words
    assert "layer=INTEGER|null (>= 0; default: null)" in words
    assert "kind=query|value (default: query)" in words
    assert "names=A,B (default: [])" in words
    assert "flag=true|false (default: false)" in words


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A program with one job on a command line: exit code, stdout, stderr."""

    def run(job: Callable[[Example], None], *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["example.py", *arguments])
        code = program(Example, job, name="example.py", purpose="Do it.")
        return (code, *capsys.readouterr())

    return run


def raising(error: BaseException) -> Callable[[Example], None]:
    def job(_: Example) -> None:
        raise error

    return job


def test_a_job_gets_the_settings(run: Run) -> None:
    assert run(lambda settings: print(settings.run, settings.count), "run=x", "count=3") == (0, "x 3\n", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_runs_nothing(run: Run, flag: str) -> None:
    code, out, err = run(raising(RuntimeError()), "count=0", flag)
    assert (code, out.splitlines()[0], err) == (0, "Do it.", "")


def test_bad_input_is_one_line_and_2(run: Run) -> None:
    job = raising(RuntimeError())
    assert run(job, "run=x", "count=0") == (2, "", "error: count=0: out of range; valid: > 0 and < 2147483648\n")
    assert run(raising(UserError("run=x: no\n such folder")), "run=x") == (2, "", "error: run=x: no such folder\n")


def test_an_interrupt_is_one_line_and_130(run: Run) -> None:
    assert run(raising(KeyboardInterrupt()), "run=x") == (130, "", "interrupted\n")
    assert run(raising(KeyboardInterrupt("all is kept")), "run=x") == (130, "", "interrupted; all is kept\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_disk_error_is_one_line_and_2(run: Run, number: int) -> None:
    reason = os.strerror(number)
    code, out, err = run(raising(OSError(number, reason, "a/file")), "run=x")
    assert (code, out, err) == (2, "", f"error: a/file: {reason}; rerun the command to resume\n")


def test_a_bug_keeps_its_traceback_and_is_1(run: Run) -> None:
    code, out, err = run(raising(ZeroDivisionError("here")), "run=x")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback")
    assert err.endswith("ZeroDivisionError: here\n")


PROGRAM = """
import sys
from ssa.command_line.settings import program
from ssa.config import Section
class Lines(Section):
    count: int = 1
sys.exit(program(Lines, lambda s: [print("\\u00e9 \\u65e5") for _ in range(s.count)], name="x", purpose="y"))
"""


def test_a_closed_pipe_is_no_error() -> None:
    command = [sys.executable, "-c", PROGRAM, "count=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_characters_that_the_terminal_lacks_are_replaced() -> None:
    environment = {"PYTHONIOENCODING": "latin-1", "PATH": ""}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment, check=True)
    assert done.stdout == "é ?\n".encode("latin-1")


def test_a_folder_without_its_key_is_taken_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-run").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^a-run: not KEY=VALUE, did you mean run=a-run\?; "):
        parse(Example, ["a-run"])


@pytest.mark.parametrize("package", ["ssa.command_line", "experiments", "sweeps"])
def test_ctrl_c_during_imports_is_one_line(package: str) -> None:
    code = f"import {package}\nraise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "interrupted\n")
