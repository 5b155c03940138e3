"""The temperatures against the paper's equations, written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssa.model_config import ScalarTemperature
from ssa.temperature import Temperature, TokenPart, build_temperatures, scale

H, T, D = 3, 7, 5


def parts(token: str, position: str) -> ScalarTemperature:
    return ScalarTemperature(token=token, position=position)


def randomised(temperature: Temperature, seed: int = 0) -> Temperature:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in temperature.parameters():
            parameter.normal_(0, 1, generator=generator)
    return temperature


@pytest.mark.parametrize("per", ["head", "layer"])
@pytest.mark.parametrize(("token", "position"), [("shared", "none"), ("none", "log"), ("shared", "log")])
def test_equals_the_equation_scalar_by_scalar(per: str, token: str, position: str) -> None:
    tau = randomised(Temperature(parts(token, position), H, D, per, -4.5))
    features = torch.randn(2, H, T, D, generator=torch.Generator().manual_seed(1))
    got = tau(features, torch.arange(1, T + 1)).expand(2, H, T, 1)
    for batch in range(2):
        for head in range(H):
            for i in range(T):
                want = 1.0
                if token == "shared":
                    w = tau.parts["token"].weight
                    heads = [head] if per == "head" else range(H)
                    want += math.tanh(sum((w[h] @ F.gelu(features[batch, h, i])).item() for h in heads))
                if position == "log":
                    alpha = tau.parts["position"].alpha[head if per == "head" else 0]
                    want += torch.sigmoid(alpha).item() * math.log(i + 1)
                assert got[batch, head, i, 0].item() == pytest.approx(want, abs=1e-6)


def test_starts_at_the_identity_within_the_stated_tolerance() -> None:
    tau = Temperature(parts("shared", "log"), H, D, "head", -4.5)
    values = tau(torch.randn(1, H, 1024, D), torch.arange(1, 1025))
    assert values[..., 0, 0].eq(1).all()  # n = 1: log n = 0, and w = 0
    assert 1.07 < values.max().item() < 1.077 + 1e-3


def test_is_exactly_one_at_the_identity() -> None:
    tau = Temperature(parts("shared", "log"), H, D, "head", -math.inf)
    assert tau(torch.randn(2, H, T, D), torch.arange(1, T + 1)).eq(1).all()


@pytest.mark.parametrize("part", [TokenPart(H, D, True), TokenPart(H, D, False)])
def test_token_part_learns_from_its_start(part: TokenPart) -> None:
    part(torch.randn(2, H, T, D), torch.arange(1, T + 1)).sum().backward()
    assert part.weight.grad is not None
    assert part.weight.grad.abs().min() > 0


@pytest.mark.parametrize("per", ["head", "layer"])
def test_gradients_are_right_in_float64(per: str) -> None:
    tau = randomised(Temperature(parts("shared", "log"), H, D, per, -4.5)).double()
    features = torch.randn(1, H, T, D, dtype=torch.float64, requires_grad=True)
    parameters = tuple(tau.parameters())

    def call(features: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return tau(features, torch.arange(1, T + 1))

    assert call(features).dtype == torch.float64
    assert torch.autograd.gradcheck(call, (features, *parameters))


def test_stays_float32_under_autocast_and_resolves_what_bf16_cannot() -> None:
    tau = Temperature(parts("shared", "log"), H, D, "head", -4.5)
    features = torch.randn(1, H, 2048, D, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        values = tau(features, torch.arange(1, 2049))
    assert values.dtype == torch.float32
    assert values[0, 0].unique().numel() == 2048
    assert values.bfloat16()[0, 0].unique().numel() < 20
    assert scale(features, values).dtype == torch.bfloat16


def test_scaling_multiplies_in_float32() -> None:
    features = torch.full((1, 1, 1, 1), 3.0, dtype=torch.bfloat16)
    tau = torch.full((1, 1, 1, 1), 1.005)  # 1.0 in bf16, but 3 x 1.005 = 3.015 rounds to 3.015625
    assert scale(features, tau).item() == pytest.approx(3.015625)


def test_only_what_is_asked_for_is_built(model_config) -> None:
    assert not build_temperatures(model_config().temperature, H, D)
    one = build_temperatures(model_config(key=parts("none", "log")).temperature, H, D)
    assert list(one) == ["key"]
    assert [tuple(p.shape) for p in one.parameters()] == [(H,)]
    assert not build_temperatures(model_config(query=parts("none", "none")).temperature, H, D)
