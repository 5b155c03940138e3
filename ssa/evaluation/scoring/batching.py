"""Batching by length, with smaller batches after running out of memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch

from ssa.errors import UserError

# Limits of an automatic batch.
_ROWS = 256
_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 65536}


def in_batches(
    run: Callable[[list[int]], None], lengths: Sequence[int], device: torch.device, batch_size: int | None = None
) -> None:
    """Run requests of these lengths in order, in batches; halve automatic batches that do not fit in memory.

    ``run`` is called with the indices of each batch, of ``batch_size`` rows (None: automatic, by device).

    Raises:
        UserError: out of memory at the given batch size, or at a single row.
    """
    fitting = len(lengths)  # upper bound of a batch that fits in memory

    def attempt(indices: list[int]) -> None:
        nonlocal fitting
        if len(indices) <= fitting:
            try:
                run(indices)
                return
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                where = f"out of memory on {device.type}"
                if len(indices) == 1:
                    raise UserError(f"context: {where} at {lengths[indices[0]]} tokens; try fewer") from None
                if batch_size is not None:
                    raise UserError(f"batch_size={batch_size}: {where}; try a smaller one") from None
            fitting = len(indices) // 2
        attempt(indices[: len(indices) // 2])
        attempt(indices[len(indices) // 2 :])

    for indices in _batches(lengths, device, batch_size):
        attempt(indices)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CPU and MPS raise a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|allocate memory", str(error)))


def _batches(lengths: Sequence[int], device: torch.device, batch_size: int | None) -> Iterator[list[int]]:
    indices: list[int] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if indices and len(indices) >= (batch_size or max(1, min(_ROWS, _TOKENS[device.type] // longest))):
            yield indices
            indices, longest = [], length
        indices.append(index)
    if indices:
        yield indices
