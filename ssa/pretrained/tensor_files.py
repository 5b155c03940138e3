"""Safetensors files, read in pieces.

Files are mapped, and pages of a mapping that were read count as memory until it is closed: each piece is read through
a mapping of its own.
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

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # of the dtypes that are read, as safetensors calls them
_PIECE = 8 << 20  # bytes


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    init_from: str
    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def copy_to(self, ours: Tensor) -> None:
        """Fills ``ours``, a view whose leading dimensions may be one of the tensor's, converting the dtype.

        Raises:
            UserError: the file cannot be read.
        """
        for start, end in self._ranges(ours):
            with _reading(self.init_from, self.file):
                ours[start:end].copy_(self._piece(ours, start, end))

    def equals(self, ours: Tensor) -> bool:
        """Whether `copy_to` would change nothing.

        Raises:
            UserError: the file cannot be read.
        """
        for start, end in self._ranges(ours):
            with _reading(self.init_from, self.file):
                if not torch.equal(self._piece(ours, start, end).to(ours.dtype), ours[start:end]):
                    return False
        return True

    def _ranges(self, ours: Tensor) -> Iterator[tuple[int, int]]:
        rows = len(ours)
        step = max(1, _PIECE * rows // (ours.numel() * ITEM_BYTES[self.dtype]))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))

    def _piece(self, ours: Tensor, start: int, end: int) -> Tensor:
        together = self.shape[0] // len(ours)  # rows of the tensor that are one of ours
        with safe_open(self.file, framework="pt") as opened:
            piece: Tensor = opened.get_slice(self.name)[start * together : end * together]
            return piece.view(ours[start:end].shape)


def contents(init_from: str, files: Sequence[Path]) -> Iterator[StoredTensor]:
    """All tensors of some files, from their headers.

    Raises:
        UserError: a file cannot be read, is damaged or cut short.
    """
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
        raise UserError(f"init_from={init_from}: {file.name} is damaged or cut short ({error})") from None
