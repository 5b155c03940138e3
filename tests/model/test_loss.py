"""The chunked loss against cross-entropy over all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssa.model import loss
from ssa.model.loss import linear_cross_entropy

N, D, V = 150, 12, 37
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_LEAST_TOKENS", 64)
    monkeypatch.setattr(loss, "_CHUNK_BYTES", {"cpu": 0})


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, D, generator=draws, dtype=dtype) for rows in (N, V))
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, V, (N,), generator=draws)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(hidden @ weight.mT, targets, reduction=reduction)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_losses_and_gradients_are_those_of_all_logits(dtype: torch.dtype, reduction: Any) -> None:
    hidden, weight, targets = inputs(dtype)
    got, want = (f(hidden, weight, targets, reduction) for f in (linear_cross_entropy, plain))
    assert got.dtype == dtype
    outer = torch.randn(got.shape, dtype=dtype)  # a gradient from above that differs by token
    both = [torch.autograd.grad(result, (hidden, weight), outer) for result in (got, want)]
    with torch.no_grad():
        evaluated = linear_cross_entropy(hidden, weight, targets, reduction)
    for ours, theirs in zip((got, evaluated, *both[0]), (want, want, *both[1]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_inputs_get_no_gradient(frozen: int) -> None:
    *both, targets = inputs(torch.float64)
    both[frozen].requires_grad_(False)
    linear_cross_entropy(*both, targets, "mean").backward()
    learned, want = both[1 - frozen], plain(*both, targets, "mean")
    torch.testing.assert_close(learned.grad, torch.autograd.grad(want, learned)[0], rtol=1e-12, atol=1e-12)
    assert both[frozen].grad is None


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_under_autocast_products_are_bf16_and_the_softmax_float32(reduction: Any) -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(hidden, weight, targets, reduction)
    want = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().mT).float(), targets, reduction=reduction)
    torch.testing.assert_close(got, want)
    ours, theirs = (torch.autograd.grad(result.mean(), (hidden, weight)) for result in (got, want))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-2 * other.norm()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = inputs(torch.float32)
    got, want = (f(1e4 * hidden, weight, targets, "mean") for f in (linear_cross_entropy, plain))
    torch.testing.assert_close(got, want)
    assert torch.autograd.grad(got, weight)[0].isfinite().all()


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, targets = inputs(torch.float64)
    mean = linear_cross_entropy(hidden, weight, targets, "mean")
    mean.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        mean.backward()


def test_gradients_accumulate_over_calls() -> None:
    hidden, weight, targets = inputs(torch.float64)
    for _ in range(2):
        linear_cross_entropy(hidden, weight, targets, "mean").backward()
    want = torch.autograd.grad(plain(hidden, weight, targets, "mean"), (hidden, weight))
    for ours, theirs in zip((hidden.grad, weight.grad), want, strict=True):
        torch.testing.assert_close(ours, 2 * theirs, rtol=1e-12, atol=1e-12)


class _Largest(TorchDispatchMode):
    """The largest number of elements of a tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_there_are_never_all_logits(reduction: Any) -> None:
    hidden, weight, targets = inputs(torch.float32)
    with _Largest() as largest:
        linear_cross_entropy(hidden, weight, targets, reduction).sum().backward()
    assert largest.elements == 64 * V
