"""Attention maps: logits, temperatures and norms against the equations; equality with vanilla at the identity."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig, Terms
from ssa.theory.attention_map import QUERY, VANILLA, AttentionMap, spikiness
from ssa.theory.ensemble import train

CONSTANT = TemperatureConfig(name="constant", query=Terms(multiplier="constant"))


def random_map(temperature: TemperatureConfig, *, width: int = 5, head_dim: int = 3, n_head: int = 2) -> AttentionMap:
    """With temperatures away from their start values."""
    layer = AttentionMap(width, head_dim, temperature, n_head=n_head, seed=1)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for values in layer.temperature.parameters():
            values.copy_(torch.randn(values.shape, generator=draws, dtype=torch.float64))
    return layer


def vectors(batch: int, n: int, width: int = 5) -> Tensor:
    return torch.randn(batch, n, width, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def gelu(x: float) -> float:
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("temperature", [VANILLA, QUERY, CONSTANT], ids=lambda config: config.name)
def test_logits_and_temperatures_are_those_of_the_equation(temperature: TemperatureConfig) -> None:
    """tau = 1 + tanh(w . gelu(W_q x)) + sigmoid(alpha) log n; or a constant c; or 1; entry by entry."""
    layer = random_map(temperature)
    queries, keys = vectors(2, 4), vectors(2, 7)
    logits, temperatures = layer.logits(queries, keys), layer.temperatures(queries, 7)
    assert logits.shape == (2, 2, 4, 7)
    assert temperatures.shape == (2, 2, 4)
    w_q, w_k = (layer.get_parameter(name).detach() for name in ("query", "key"))
    learned = {name.rsplit(".", 1)[1]: values.tolist() for name, values in layer.temperature.named_parameters()}
    for head in range(2):
        rows = range(3 * head, 3 * head + 3)
        for b in range(2):
            for i in range(4):
                q = [float(w_q[row] @ queries[b, i]) for row in rows]
                tau = 1.0
                if temperature is QUERY:
                    score = sum(w * gelu(x) for w, x in zip(learned["weight"][head], q, strict=True))
                    tau += math.tanh(score) + math.log(7) / (1 + math.exp(-learned["alpha"][head]))
                elif temperature is CONSTANT:
                    tau = learned["weight"][head]
                assert temperatures[b, head, i].item() == pytest.approx(tau, rel=1e-12)
                for j in range(7):
                    k = [float(w_k[row] @ keys[b, j]) for row in rows]
                    expected = tau * sum(x * y for x, y in zip(q, k, strict=True)) / math.sqrt(3)
                    assert logits[b, head, i, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("width", "head_dim"), [(5, 3), (3, 5), (4, 4)])
def test_norms_are_the_largest_singular_values_of_w(width: int, head_dim: int) -> None:
    layer = random_map(QUERY, width=width, head_dim=head_dim)
    for head, norm in enumerate(layer.norms().tolist()):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        w = layer.query[rows].T @ layer.key[rows] / math.sqrt(head_dim)
        assert norm == pytest.approx(torch.linalg.svdvals(w.detach())[0].item(), rel=1e-12)


def test_tau_times_the_norm_bounds_logits_of_unit_vectors() -> None:
    layer = random_map(QUERY)
    x, y = (nn.functional.normalize(vectors(1, n), dim=-1) for n in (50, 60))
    bounds = layer.temperatures(x, 60)[0, ..., None] * layer.norms()[:, None, None]
    assert (layer.logits(x, y)[0].abs() <= bounds).all()


def test_a_vanilla_map_depends_on_w_only() -> None:
    """x_i^T W x_j: rotating W_q and W_k together changes nothing."""
    layer, x = random_map(VANILLA, n_head=1), vectors(1, 6)
    before, norm = layer.logits(x, x), layer.norms()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    with torch.no_grad():
        layer.query.copy_(turn @ layer.query)
        layer.key.copy_(turn @ layer.key)
    assert torch.allclose(layer.logits(x, x), before)
    assert torch.allclose(layer.norms(), norm)


def test_equal_seeds_give_equal_weights_with_or_without_temperatures() -> None:
    vanilla, ssa, other = (
        AttentionMap(6, 4, config, seed=seed) for config, seed in ((VANILLA, 3), (QUERY, 3), (QUERY, 4))
    )
    for name in ("query", "key"):
        assert torch.equal(vanilla.get_parameter(name), ssa.get_parameter(name))
        assert not torch.equal(ssa.get_parameter(name), other.get_parameter(name))


def test_ssa_starts_within_its_position_aware_term_of_vanilla() -> None:
    layer, n = AttentionMap(6, 4, QUERY, seed=3), 64
    slope = 1 / (1 + math.exp(4.5))
    assert torch.allclose(layer.temperatures(vectors(1, 5, 6), n), torch.tensor(1 + slope * math.log(n)).double())
    assert (AttentionMap(6, 4, VANILLA).temperatures(vectors(1, 5, 6), n) == 1).all()


class Fit(nn.Module):
    """Fits a layer's maps to given maps."""

    def __init__(self, temperature: TemperatureConfig, seed: int) -> None:
        super().__init__()
        self.layer = AttentionMap(5, 3, temperature, n_head=2, seed=seed)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return -(target * self.layer.logits(x, x).log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("alpha", [-math.inf, -1e4])
def test_ssa_frozen_at_the_identity_trains_as_vanilla(vectorized: bool, alpha: float) -> None:
    """Bit for bit, vectorized or sequential."""

    def draw(number: int, chunk: int) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(100 * number + chunk)
        x = torch.randn(50, 2, 6, 5, generator=draws, dtype=torch.float64)
        return x, torch.rand(50, 2, 2, 6, 6, generator=draws, dtype=torch.float64).softmax(-1)

    maps = []
    for temperature in (VANILLA, QUERY):
        members = [Fit(temperature, seed) for seed in range(3)]
        for member in members:
            for name, values in member.layer.temperature.named_parameters():
                values.requires_grad_(False)
                values.fill_(alpha if name.endswith("alpha") else 0.0)
        started = members[0].layer.query.detach().clone()
        train(members, draw, steps=70, lr=0.05, vectorized=vectorized)
        assert not torch.allclose(members[0].layer.query, started, atol=0.01)
        x = vectors(2, 6)
        maps.append(torch.stack([member.layer.logits(x, x).softmax(-1) for member in members]))
    assert torch.equal(*maps)


def test_spikiness_is_the_fraction_of_keys_attended_to() -> None:
    maps = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.5, 0, 0]], dtype=torch.float64)
    assert spikiness(maps).tolist() == [1, 0.25, 0.5]
