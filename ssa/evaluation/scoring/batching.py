"""How much goes through the model at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import torch

from ssa.errors import UserError

_ROWS = 256  # at most, where the size is ours to choose
_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 65536}  # likewise


def in_batches(
    run: Callable[[list[int]], None],
    lengths: Sequence[int],
    device: torch.device,
    batch_size: int | None = None,
) -> None:
    """Runs items in their order, batch by batch; where memory is short and the size is ours, in halves of a batch.

    Args:
        run: takes the numbers of a batch's items.
        lengths: tokens of each item.
        device: what it runs on.
        batch_size: rows at once; None: as many as suit the device.

    Raises:
        UserError: out of memory.
    """

    most = len(lengths)  # items at once that memory has room for

    def attempt(items: list[int]) -> None:
        nonlocal most
        if len(items) <= most:
            try:
                run(items)
                return
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                if batch_size is not None and len(items) > 1:
                    raise UserError(
                        f"batch_size={batch_size}: out of memory on {device.type}; try a smaller one"
                    ) from None
                if len(items) == 1:
                    length = max(lengths[item] for item in items)
                    raise UserError(f"context: out of memory on {device.type} at {length} tokens; try fewer") from None
            most = len(items) // 2
        attempt(items[: len(items) // 2])
        attempt(items[len(items) // 2 :])

    for items in _batches(lengths, device, batch_size):
        attempt(items)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of the CPU and of MPS it is no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|allocate memory", str(error)))


def _batches(lengths: Sequence[int], device: torch.device, batch_size: int | None) -> Iterator[list[int]]:
    items: list[int] = []
    longest = 0
    for item, length in enumerate(lengths):
        longest = max(longest, length)
        if items and len(items) >= (batch_size or max(1, min(_ROWS, _TOKENS[device.type] // longest))):
            yield items
            items, longest = [], length
        items.append(item)
    if items:
        yield items
