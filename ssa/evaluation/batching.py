"""How much goes through the model at once."""

from __future__ import annotations

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

    def attempt(items: list[int]) -> None:
        try:
            run(items)
            return
        except torch.OutOfMemoryError:
            if batch_size is not None or len(items) == 1:
                size = len(items) if batch_size is None else batch_size
                raise UserError(f"batch_size={size}: out of memory on {device.type}; try a smaller one") from None
        attempt(items[: len(items) // 2])
        attempt(items[len(items) // 2 :])

    for items in _batches(lengths, device, batch_size):
        attempt(items)


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
