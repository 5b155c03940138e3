"""Cross-entropy over the vocabulary, from hidden states and the output matrix, without all logits at once.

Letters: N tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_CHUNK_BYTES = {"cpu": 2**24, "cuda": 2**29}  # float32 logits of a chunk; larger ones are no faster
_LEAST_TOKENS = 128  # of a chunk: each one reads the whole output matrix

_device: ContextVar[str | None] = ContextVar("device", default=None)

Reduction = Literal["none", "mean"]


@contextmanager
def chunks_as_on(device: str) -> Iterator[None]:
    """In the block, chunks have the size for this kind of device wherever the tensors are, to plan for another one."""
    token = _device.set(device)
    try:
        yield
    finally:
        _device.reset(token)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: Reduction = "none") -> Tensor:
    """``F.cross_entropy(hidden @ weight.T, targets)`` in chunks of tokens, the softmax in float32.

    The mean's gradients are computed in the forward pass, so that no logits are kept; those of ``none`` in the backward
    pass, which computes the logits again.

    Args:
        hidden: final hidden states, (N, D).
        weight: the output matrix, (V, D).
        targets: token ids, (N,).
        reduction: ``none`` or ``mean``.

    Returns:
        Negative log-likelihoods (N,) or their mean, in nats; float32 (float64 for float64 inputs).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        if reduction == "mean" and gradients:
            mean: Tensor = _MeanLoss.apply(hidden, weight, targets, dtype)  # type: ignore[no-untyped-call]
            return mean
        matrix = weight.to(dtype)
        losses = [
            checkpoint(_losses, states, matrix, wanted, use_reentrant=False)
            if gradients
            else _losses(states, matrix, wanted)
            for states, wanted in _chunks(hidden.to(dtype), targets, len(matrix))
        ]
        every = torch.cat(losses)
    return every.mean() if reduction == "mean" else every


def _losses(states: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((states @ matrix.mT).to(_precise(states.dtype)), targets, reduction="none")


class _MeanLoss(torch.autograd.Function):
    """The mean loss.  Its gradients are computed in the same pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        matrix, count = weight.to(dtype), len(targets)
        total = torch.zeros((), dtype=_precise(dtype), device=hidden.device)
        to_hidden = torch.empty_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        buffer, begin = None, 0  # of logits
        for states, wanted in _chunks(hidden.to(dtype), targets, len(matrix)):
            if buffer is None:
                buffer = torch.empty(len(states), len(matrix), dtype=total.dtype, device=hidden.device)
            end, wanted = begin + len(states), wanted[:, None]
            logits = torch.mm(states, matrix.mT, out=buffer[: len(states)] if dtype == total.dtype else None)
            logits = logits.to(total.dtype)
            chosen, largest = logits.gather(1, wanted), logits.amax(1, keepdim=True)
            sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
            total += (sums.log() + largest - chosen).sum()
            to_logits = logits.mul_((count * sums).reciprocal_())  # softmax / N
            to_logits = to_logits.scatter_add_(1, wanted, torch.full_like(chosen, -1 / count)).to(dtype)
            to_hidden[begin:end] = to_logits @ matrix
            if to_weight is not None and dtype == weight.dtype:
                to_weight.addmm_(to_logits.mT, states)
            elif to_weight is not None:
                to_weight += to_logits.mT @ states
            begin = end
        ctx.save_for_backward(to_hidden, to_weight)
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        # In place: the output matrix's gradient can take gigabytes.  autograd refuses a second backward pass.
        return *(None if saved is None else saved.mul_(gradient) for saved in ctx.saved_tensors), None, None


def _chunks(states: Tensor, targets: Tensor, vocabulary: int) -> Iterator[tuple[Tensor, Tensor]]:
    most = _CHUNK_BYTES.get(_device.get() or states.device.type, _CHUNK_BYTES["cpu"])
    size = max(most // (4 * vocabulary), _LEAST_TOKENS)
    return zip(states.split(size), targets.split(size), strict=True)  # type: ignore[no-untyped-call]


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
