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
    rows: Sequence[int] | None = None,
) -> None:
    """Runs items in their order, batch by batch; where memory is short and the size is ours, in halves of a batch.

    Args:
        run: takes the numbers of a batch's items.
        lengths: tokens in a row of each item.
        device: what it runs on.
        batch_size: rows at once; None: as many as suit the device.
        rows: of each item; default: one.

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

    for items in _batches(lengths, rows or [1] * len(lengths), device, batch_size):
        attempt(items)


def _batches(
    lengths: Sequence[int], rows: Sequence[int], device: torch.device, batch_size: int | None
) -> Iterator[list[int]]:
    items: list[int] = []
    count = longest = 0
    for item, (length, more) in enumerate(zip(lengths, rows, strict=True)):
        longest = max(longest, length)
        limit = batch_size or max(1, min(_ROWS, _TOKENS[device.type] // longest))
        if items and count + more > limit:
            yield items
            items, count, longest = [], 0, length
        items.append(item)
        count += more
    if items:
        yield items
