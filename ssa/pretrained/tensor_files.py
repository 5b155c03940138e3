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

from ssa.errors import UserError, first_line
from ssa.pretrained.tensor_headers import DTYPE_BYTES, tensor_headers

_PIECE = 8 << 20  # bytes


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    init_from: str
    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def copy_to(self, target: Tensor, kept: Tensor | None = None) -> bool:
        """Copy into ``target``, a view that may split the tensor's first dimension, converting the dtype.

        Args:
            target: where to.
            kept: which elements are needed, of the target's shape; pieces without any are not read.

        Returns:
            Whether all values that were read are finite.
        """
        finite = True
        for place, piece in self._pieces(target, kept):
            finite &= bool(place.copy_(piece).isfinite().all())
        return finite

    def equals(self, target: Tensor, kept: Tensor | None = None) -> bool:
        """Whether `copy_to` would leave ``target`` unchanged."""
        return all(torch.equal(piece.to(place.dtype), place) for place, piece in self._pieces(target, kept))

    def _pieces(self, target: Tensor, kept: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Pieces of ``target`` and of the tensor, some rows at a time."""
        group = self.shape[0] // len(target)  # rows of the tensor per row of the target
        step = max(1, _PIECE * len(target) // (target.numel() * DTYPE_BYTES[self.dtype]))
        for start in range(0, len(target), step):
            place = target[start : start + step]
            if kept is not None and not kept[start : start + step].any():
                continue
            with _reading(self.init_from, self.file), safe_open(self.file, framework="pt") as opened:
                rows = slice(start * group, (start + len(place)) * group)
                yield place, opened.get_slice(self.name)[rows].view(place.shape)


def stored_tensors(init_from: str, files: Sequence[Path]) -> Iterator[StoredTensor]:
    """All tensors in some files, from the file headers."""
    for file in files:
        for name, shape, dtype in tensor_headers(file, f"init_from={init_from}: {file.name}"):
            yield StoredTensor(init_from, file, name, shape, dtype)


@contextlib.contextmanager
def _reading(init_from: str, file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"init_from={init_from}: {file.name} cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise UserError(f"init_from={init_from}: {file.name} is damaged or truncated ({first_line(error)})") from None
