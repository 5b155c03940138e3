"""Ensembles: each member is trained as it would be alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ssa.theory.ensemble import CHUNK, train


class Regression(nn.Module):
    """A small network with one frozen parameter and a buffer."""

    offset: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        draws = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(4, 3, generator=draws, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(4, generator=draws, dtype=torch.float64))
        self.held = nn.Parameter(torch.randn(4, generator=draws, dtype=torch.float64), requires_grad=False)
        self.register_buffer("offset", torch.randn(4, generator=draws, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        inner = torch.tanh(x @ self.first.T + self.offset) + self.held
        return (inner @ self.second - y).square().mean()


def draw(number: int, chunk: int) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1000 * number + chunk)
    x = torch.randn(CHUNK, 8, 3, generator=draws, dtype=torch.float64)
    return x, x.sum(-1)


def trained(*numbers: int, steps: int = 120, vectorized: bool = True) -> list[Regression]:
    members = [Regression(number) for number in numbers]
    train(members, lambda place, chunk: draw(numbers[place], chunk), steps=steps, lr=0.02, vectorized=vectorized)
    return members


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("steps", [1, CHUNK, 2 * CHUNK + 20])
def test_vectorized_equals_sequential(steps: int) -> None:
    together, apart = (trained(0, 1, 2, steps=steps, vectorized=choice) for choice in (True, False))
    assert all(distance(one, other) < 1e-9 for one, other in zip(together, apart, strict=True))
    assert distance(together[0], together[1]) > 0.1


def test_members_are_independent() -> None:
    (alone,), (_, inside, _) = trained(1), trained(0, 1, 2)
    assert distance(alone, inside) < 1e-9


@pytest.mark.parametrize("vectorized", [True, False])
def test_frozen_parameters_stay_and_the_rest_learns(vectorized: bool) -> None:
    for number, member in enumerate(trained(0, 1, vectorized=vectorized)):
        start, batch = Regression(number), tuple(part[0] for part in draw(number, 99))
        assert torch.equal(member.held, start.held)
        assert torch.equal(member.offset, start.offset)
        assert member(*batch).item() < 0.8 * start(*batch).item()


@pytest.mark.parametrize("vectorized", [True, False])
def test_the_first_step_of_adam_has_the_size_of_the_learning_rate(vectorized: bool) -> None:
    """The first step has the full rate; the second of two has half, as the cosine is halfway."""
    (one,), start = trained(3, steps=1, vectorized=vectorized), Regression(3)
    assert torch.allclose((one.first - start.first).abs(), torch.tensor(0.02).double(), rtol=1e-5)
    (two,) = trained(3, steps=2, vectorized=vectorized)
    batches = draw(3, 0)
    _, gradients = zip(*(_gradient(member, batches, step) for step, member in enumerate((start, one))), strict=True)
    mean = 0.9 * 0.1 * gradients[0] + 0.1 * gradients[1]
    square = 0.999 * 0.001 * gradients[0] ** 2 + 0.001 * gradients[1] ** 2
    update = (mean / (1 - 0.9**2)) / ((square / (1 - 0.999**2)).sqrt() + 1e-8)
    assert torch.allclose(one.second - two.second, 0.02 * 0.5 * (1 + math.cos(math.pi / 2)) * update, atol=1e-12)


def _gradient(member: Regression, batches: tuple[Tensor, Tensor], step: int) -> tuple[float, Tensor]:
    value = member(*(part[step] for part in batches))
    (gradient,) = torch.autograd.grad(value, member.second)
    return value.item(), gradient
