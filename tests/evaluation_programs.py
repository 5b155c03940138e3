"""Run ``evaluate.py`` in the test process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

from ssa.text.tokenization import Tokenizer


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Launch = Callable[..., Outcome]


def evaluate_in_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Launch:
    """``python evaluate.py ARGUMENTS device=cpu`` in this process, from an empty folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def launch(*arguments: str) -> Outcome:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(ROOT / "evaluate.py"), *arguments])
            with pytest.raises(SystemExit) as exit_:
                runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
        return Outcome(int(exit_.value.code or 0), *capfd.readouterr())

    return launch


def tokens_in(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    return sum(map(len, tokenizer.encode_batch(texts)))
