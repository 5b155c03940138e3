"""Training of many small models of one shape at once, one per seed, vectorized with `torch.func.vmap`.

Each member is trained exactly as it would be alone, on its own batches: members share no gradients, and Adam is
elementwise.  Vectorization saves the launch overhead of thousands of tiny kernels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

CHUNK = 50  # steps whose batches are drawn at once
Batches = tuple[Tensor, ...]  # each (CHUNK, ...): the arguments of CHUNK forward passes


def generator(*key: int) -> torch.Generator:
    """The independent random stream of a purpose, seed and chunk: non-negative integers; trailing zeros are ignored.

    Hashed with `SeedSequence`, as `manual_seed` alone uses only 32 bits.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def train(
    members: Sequence[nn.Module], draw: Callable[[int, int], Batches], *, steps: int, lr: float, vectorized: bool = True
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
            _optimize(member.parameters(), member, partial(draw, number), steps, lr)
        return
    parameters, buffers = stack_module_state(list(members))
    skeleton = copy.deepcopy(members[0]).to("meta")

    def loss(values: dict[str, Tensor], constants: dict[str, Tensor], *batch: Tensor) -> Any:
        return functional_call(skeleton, (values, constants), batch)

    losses = vmap(loss)

    def draw_all(chunk: int) -> Batches:
        drawn = [draw(number, chunk) for number in range(len(members))]
        return tuple(torch.stack(parts, dim=1) for parts in zip(*drawn, strict=True))  # (CHUNK, members, ...)

    _optimize(parameters.values(), lambda *batch: losses(parameters, buffers, *batch).sum(), draw_all, steps, lr)
    with torch.no_grad():
        for number, member in enumerate(members):
            for name, values in member.named_parameters():
                values.copy_(parameters[name][number])


def _optimize(
    parameters: Iterable[Tensor], loss: Callable[..., Tensor], draw: Callable[[int], Batches], steps: int, lr: float
) -> None:
    optimizer = Adam([values for values in parameters if values.requires_grad], lr=lr)
    schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    for step in range(steps):
        if step % CHUNK == 0:
            chunk = draw(step // CHUNK)
        optimizer.zero_grad(set_to_none=True)
        loss(*(part[step % CHUNK] for part in chunk)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
