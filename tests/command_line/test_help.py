"""Help pages: printed without heavy imports, and pointing to files that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT
from programs import launch

PAGES = [
    ("train.py",),
    ("evaluate.py",),
    ("generate.py",),
    ("export.py",),
    ("report.py",),
    ("-m", "experiments"),
    ("-m", "experiments", "fig2_norms"),
    ("-m", "experiments", "table3_main"),
    ("-m", "sweeps"),
    ("-m", "sweeps", str(ROOT / "sweeps" / "optuna_learning_rate.yaml")),
]


@pytest.mark.parametrize("command", PAGES, ids=lambda command: " ".join(command[:2]))
def test_a_help_page(command: tuple[str, ...], tmp_path: Path) -> None:
    code, out, err, heavy = launch(*command, "--help", cwd=tmp_path)
    assert (code, err, heavy - {"numpy", "scipy"}) == (0, "", set())
    assert f"usage: python {' '.join(command[:2])}" in out
    paths = re.findall(r"^  ((?:\w+/)+[\w.]*|\w+\.py)  ", out, re.MULTILINE)
    assert paths or command in PAGES[5:6] + PAGES[8:9]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert list(tmp_path.iterdir()) == []
