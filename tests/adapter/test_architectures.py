"""All causal language models of the installed transformers: adapted as promised, or refused."""

from __future__ import annotations

import re

import pytest
import transformers
from architectures import ARCHITECTURES
from conftest import ROOT
from judgment import TABLE, judge

DOCUMENT = (ROOT / TABLE).read_text(encoding="utf-8")
DOCUMENTED = dict(re.findall(r"^\| `([\w-]+)` \| (adapted|refused|no tiny model) \|", DOCUMENT, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture(name: str) -> None:
    found = judge(name)
    assert not found.faults
    if f"transformers {transformers.__version__}" in DOCUMENT:
        assert found.status == DOCUMENTED[name], found.reason


def test_the_document_has_all_architectures() -> None:
    assert list(DOCUMENTED.values()).count("adapted") >= 30
    if f"transformers {transformers.__version__}" in DOCUMENT:
        assert sorted(DOCUMENTED) == ARCHITECTURES
