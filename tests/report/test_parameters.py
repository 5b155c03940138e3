"""The tables of parameter counts, and the document that shows them."""

from __future__ import annotations

import pytest
from conftest import ROOT

from ssa.report.parameters import BACKBONES, model_of, rule_table, share_table

DOCUMENT = ROOT / "docs" / "temperature.md"
PUBLISHED = {"124m": 124_439_808, "160m": 162_322_944, "410m": 405_334_016, "tinyllama-1.1b": 1_100_048_384}


@pytest.mark.parametrize("size", BACKBONES)
def test_counts_are_the_published_models_and_ssas(size: str) -> None:
    model = model_of(size, "ssa")
    count, config = model.count_parameters(), model.config
    assert count["total"] - count["temperature"] == PUBLISHED[size]
    per_layer = (config.n_head + config.n_kv_head) * (config.head_dim + 1)  # w and alpha, on query and value
    assert count["temperature"] == config.n_layer * per_layer
    assert count["temperature"] / PUBLISHED[size] < 0.005


@pytest.mark.parametrize("size", BACKBONES)
def test_an_own_first_layer_costs_about_what_the_poster_says(size: str) -> None:
    count = model_of(size, "ssa_mlp").count_parameters()
    assert 0.04 < count["temperature"] / PUBLISHED[size] < 0.09


@pytest.mark.slow
def test_the_document_shows_what_the_command_prints() -> None:
    assert share_table() in DOCUMENT.read_text()
    assert rule_table() in DOCUMENT.read_text()
