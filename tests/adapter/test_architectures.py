"""All causal language models of the installed transformers: adapted as promised, or refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import transformers
from architectures import ARCHITECTURES
from conftest import ROOT
from judgment import TABLE, judge

DOCUMENT = (ROOT / TABLE).read_text(encoding="utf-8")
DOCUMENTED = dict(re.findall(r"^\| `([\w-]+)` \| (adapted|refused|no tiny model) \|", DOCUMENT, re.MULTILINE))


def judged(number: int, name: str) -> Any:
    """A parameter; all take minutes, so the slow tests are every fourth."""
    return pytest.param(name, marks=pytest.mark.faults if number % 4 else pytest.mark.slow)


@pytest.mark.parametrize("name", [judged(number, name) for number, name in enumerate(ARCHITECTURES)])
def test_an_architecture(name: str) -> None:
    found = judge(name)
    assert not found.faults
    if f"transformers {transformers.__version__}" in DOCUMENT:
        assert found.status == DOCUMENTED[name], found.reason


def test_the_document_has_all_architectures() -> None:
    assert list(DOCUMENTED.values()).count("adapted") >= 30
    if f"transformers {transformers.__version__}" in DOCUMENT:
        assert sorted(DOCUMENTED) == ARCHITECTURES
