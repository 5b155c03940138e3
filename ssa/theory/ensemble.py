"""Training of many small models of one shape at once, one per seed, vectorized with `torch.func.vmap`.

Each member is trained exactly as it would be alone, on its own batches: members share no gradients, and Adam is
elementwise.  Vectorization saves the launch overhead of thousands of tiny kernels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

CHUNK = 50  # steps whose batches are drawn at once
Batches = tuple[Tensor, ...]  # each (CHUNK, ...): the arguments of CHUNK forward passes


def train(
    members: Sequence[nn.Module],
    draw: Callable[[int, int], Batches],
    *,
    steps: int,
    lr: float,
    vectorized: bool = True,
) -> None:
    """Train each member in place with Adam, with a cosine schedule from ``lr`` to 0.

    Args:
        members: of one shape; ``member(*batch)`` is a scalar loss.  Parameters without ``requires_grad`` stay fixed.
        draw: (member index, chunk index) -> batches for the steps of that chunk; a pure function.
        steps: optimizer steps.
        lr: initial learning rate.
        vectorized: False: train members one after another, with equal results up to rounding.
    """
    if not vectorized:
        for number, member in enumerate(members):
            _train_one(member, lambda chunk, number=number: draw(number, chunk), steps, lr)  # type: ignore[misc]
        return
    parameters, buffers = stack_module_state(list(members))
    skeleton = copy.deepcopy(members[0]).to("meta")

    def loss(values: dict[str, Tensor], constants: dict[str, Tensor], *batch: Tensor) -> Any:
        return functional_call(skeleton, (values, constants), batch)

    losses = vmap(loss)

    def chunk_of(chunk: int) -> Batches:
        drawn = [draw(number, chunk) for number in range(len(members))]
        return tuple(torch.stack(parts, dim=1) for parts in zip(*drawn, strict=True))  # (CHUNK, members, ...)

    trained = [values for values in parameters.values() if values.requires_grad]
    _loop(trained, chunk_of, lambda batch: losses(parameters, buffers, *batch).sum(), steps, lr)
    for number, member in enumerate(members):
        with torch.no_grad():
            for name, values in member.named_parameters():
                values.copy_(parameters[name][number])


def _train_one(member: nn.Module, chunk_of: Callable[[int], Batches], steps: int, lr: float) -> None:
    trained: list[Tensor] = [values for values in member.parameters() if values.requires_grad]
    _loop(trained, chunk_of, lambda batch: member(*batch), steps, lr)


def _loop(
    trained: list[Tensor], chunk_of: Callable[[int], Batches], loss: Callable[[Batches], Tensor], steps: int, lr: float
) -> None:
    optimizer = Adam(trained, lr=lr)
    schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for step in range(steps):
        if step % CHUNK == 0:
            chunk = chunk_of(step // CHUNK)
        optimizer.zero_grad(set_to_none=True)
        value = loss(tuple(part[step % CHUNK] for part in chunk))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
