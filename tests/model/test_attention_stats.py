"""Entropy, spikiness and max logit against the materialized map in float64; memory stays O(T)."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssa.model.attention_stats import attention_metrics, attention_statistics, row_statistics
from ssa.model.transformer import Transformer


def materialized(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length, n = query.size(-2), torch.arange(1, query.size(-2) + 1)
    logits = query.double() @ key.double().transpose(-1, -2) / math.sqrt(query.size(-1))
    logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    p = logits.softmax(-1)
    return -torch.xlogy(p, p).sum(-1), 1 / (n * p.square().sum(-1)), logits.amax(-1)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 70), chunk=st.integers(1, 400), spread=st.floats(0.01, 30), seed=st.integers(0, 2**31))
def test_equals_the_materialized_map(length: int, chunk: int, spread: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    query = spread * torch.randn(2, 3, length, 8, generator=generator)
    key = torch.randn(2, 3, length, 8, generator=generator)
    rows = row_statistics(query, key, chunk_elements=chunk)
    entropy, spikiness, max_logit = materialized(query, key)
    torch.testing.assert_close(rows.entropy.double(), entropy, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.spikiness.double(), spikiness, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.max_logit.double(), max_logit, rtol=1e-5, atol=1e-4)
    normalized = entropy[..., 1:] / torch.arange(2, length + 1).log()
    torch.testing.assert_close(rows.entropy_normalized[..., 1:].double(), normalized, rtol=0, atol=1e-4)


def test_known_rows() -> None:
    query = torch.zeros(1, 1, 5, 4)
    rows = row_statistics(query, torch.randn(1, 1, 5, 4))
    torch.testing.assert_close(rows.entropy[0, 0], torch.arange(1, 6).log())  # uniform
    torch.testing.assert_close(rows.spikiness[0, 0], torch.ones(5))
    one_hot = row_statistics(1e4 * torch.eye(5)[None, None], torch.eye(5)[None, None])
    torch.testing.assert_close(one_hot.entropy[0, 0], torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(one_hot.spikiness[0, 0], 1 / torch.arange(1.0, 6.0))


def test_model_statistics_are_means_of_rows(model_config) -> None:
    model = Transformer(model_config(ssa=True), 61).eval()
    ids = torch.randint(0, 61, (3, 20))
    observed = []
    model(ids, observe=observed.append)
    statistics = attention_metrics(attention_statistics(model, ids))
    for layer, inputs in enumerate(observed):
        entropy, spikiness, max_logit = materialized(inputs.query, inputs.key)
        name = f"layer_{layer:02d}"
        assert statistics[f"attention_entropy/{name}"] == pytest.approx(entropy.mean().item(), abs=1e-5)
        assert statistics[f"attention_entropy/{name}/head_01"] == pytest.approx(entropy[:, 1].mean().item(), abs=1e-5)
        assert statistics[f"attention_spikiness/{name}"] == pytest.approx(spikiness.mean().item(), abs=1e-5)
        assert statistics[f"attention_max_logit/{name}"] == pytest.approx(max_logit.max().item(), abs=1e-4)
        tau = inputs.temperatures["query"].expand(3, 2, 20, 1)
        assert statistics[f"temperature/query/{name}/mean"] == pytest.approx(tau.mean().item(), abs=1e-6)
        assert statistics[f"temperature/query/{name}/max"] == pytest.approx(tau.max().item(), abs=1e-6)
    layers = [statistics[f"attention_entropy/layer_{i:02d}"] for i in range(2)]
    assert statistics["attention_entropy"] == pytest.approx(sum(layers) / 2)
    assert not any(name.startswith("temperature/key") for name in statistics)


def test_one_token(model_config) -> None:
    statistics = attention_metrics(
        attention_statistics(Transformer(model_config(ssa=True), 61).eval(), torch.tensor([[7]]))
    )
    assert statistics["attention_entropy"] == 0
    assert statistics["attention_spikiness"] == 1
    assert all(math.isfinite(value) for value in statistics.values())


MEASURE = """
import resource, torch
from ssa.model.attention_stats import row_statistics
torch.set_num_threads(1)
heads, length = 2, 4096
query, key = torch.randn(1, heads, length, 16), torch.randn(1, heads, length, 16)
row_statistics(query[:, :, :64], key[:, :, :64])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
row_statistics(query, key)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource usage is measured as Unix does")
def test_no_map_is_held() -> None:
    command = [sys.executable, "-c", MEASURE]
    kibibytes = int(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout)
    one_map = 4096 * 4096 * 4 / 1024
    assert kibibytes < one_map
