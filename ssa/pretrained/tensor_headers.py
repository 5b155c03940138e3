"""Headers of safetensors files: names, shapes and dtypes of their tensors, without torch."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from ssa.errors import UserError
from ssa.files import parse_json

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # supported dtypes
_LENGTH = 8  # bytes that hold the header's length
_LONGEST_DTYPE = 20  # characters
_LONGEST = 100_000_000  # bytes of a header, as in the library


class TensorHeader(NamedTuple):
    """A tensor as its file describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def tensor_headers(file: Path, where: str) -> list[TensorHeader]:
    """The tensors of a safetensors file, which must fill it without gaps.

    Raises:
        UserError: the file cannot be read, or its header is damaged or does not fit it; the message begins with
            ``where``.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(_LENGTH), "little")
            header = opened.read(length) if length <= min(size - _LENGTH, _LONGEST) else b""
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror or error})") from None
    damaged = f"{where} is damaged or truncated"
    if not header:
        raise UserError(f"{damaged}: {size:,} bytes, with a header of {length:,}")
    values = parse_json(header, f"{damaged}: its header")
    values.pop("__metadata__", None)
    filled = 0
    for name, entry in sorted(values.items(), key=lambda item: _offsets(item[1])):
        begin, end = _offsets(entry)
        if not _is_valid(entry) or begin != filled:
            raise UserError(f"{damaged}: its header is wrong about {name}")
        filled = end
    if filled != size - _LENGTH - length:
        raise UserError(f"{damaged}: {size - _LENGTH - length:,} bytes of tensors; its header says {filled:,}")
    return [TensorHeader(name, tuple(entry["shape"]), entry["dtype"]) for name, entry in values.items()]


def _is_valid(entry: Any) -> bool:
    """Whether an entry of the header has all fields, and its shape and dtype fit the size of its data."""
    begin, end = _offsets(entry)
    if begin < 0:
        return False
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if not isinstance(dtype, str) or len(dtype) > _LONGEST_DTYPE or not _are_counts(shape):
        return False
    return dtype not in DTYPE_BYTES or math.prod(shape) * DTYPE_BYTES[dtype] == end - begin


def _offsets(entry: Any) -> tuple[int, int]:
    """Where the data of a tensor begin and end, (-1, -1) if the entry does not say."""
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    return (offsets[0], offsets[1]) if _are_counts(offsets) and len(offsets) == 2 else (-1, -1)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
