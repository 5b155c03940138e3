"""Safetensors files, read in pieces.

Pages of a memory map count as resident until it is closed, so that each piece is read through its own map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssa.errors import UserError

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # supported dtypes of safetensors
_PIECE = 8 << 20  # bytes


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    init_from: str
    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def copy_to(self, target: Tensor) -> bool:
        """Copy into ``target``, a view that may split the tensor's first dimension, converting the dtype.

        Returns:
            Whether all values are finite.
        """
        finite = True
        for place, piece in self._pieces(target):
            finite &= bool(place.copy_(piece).isfinite().all())
        return finite

    def equals(self, target: Tensor) -> bool:
        """Whether `copy_to` would leave ``target`` unchanged."""
        return all(torch.equal(piece.to(place.dtype), place) for place, piece in self._pieces(target))

    def _pieces(self, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of ``target`` and of the tensor, some rows at a time."""
        group = self.shape[0] // len(target)  # rows of the tensor per row of the target
        step = max(1, _PIECE * len(target) // (target.numel() * DTYPE_BYTES[self.dtype]))
        for start in range(0, len(target), step):
            place = target[start : start + step]
            with _reading(self.init_from, self.file), safe_open(self.file, framework="pt") as opened:
                rows = slice(start * group, (start + len(place)) * group)
                yield place, opened.get_slice(self.name)[rows].view(place.shape)


def stored_tensors(init_from: str, files: Sequence[Path]) -> Iterator[StoredTensor]:
    """All tensors in some files, from the file headers."""
    for file in files:
        with _reading(init_from, file), safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
            found = [StoredTensor(init_from, file, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()]
        yield from found


@contextlib.contextmanager
def _reading(init_from: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"init_from={init_from}: {file.name} cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"init_from={init_from}: {file.name} is damaged or truncated ({error})") from None
