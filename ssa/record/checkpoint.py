"""Loading checkpoints, with one-line errors for damaged files."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssa.errors import UserError
from ssa.files import refuse_lfs_pointer, replacing
from ssa.model.transformer import Transformer


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint; its tensors are memory-mapped.

    Raises:
        UserError: the file is missing, truncated or not a checkpoint.
    """
    refuse_lfs_pointer(path, str(path))
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not a checkpoint ({what}); remove it to start over") from None
    if not isinstance(contents, dict) or "config" not in contents:
        raise UserError(f"{path}: not a checkpoint of this project; remove it to start over")
    return contents


def save(contents: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically, beside the old one.

    Raises:
        OSError: the disk is full, for example.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # torch's own complaint about the rest of the file
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def vocab_size(path: Path) -> int:
    """The vocabulary size of the model in a ``best`` checkpoint.

    Raises:
        UserError: the checkpoint is damaged.
    """
    try:
        return int(read(path)["model"]["token_embedding.weight"].shape[0])
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{path}: not a checkpoint of this project's models") from None


def load_weights(model: Transformer, path: Path) -> int:
    """Load a ``best`` checkpoint into a model of the same config; returns its optimizer step.

    Raises:
        UserError: the checkpoint is damaged or of another model.
    """
    contents = read(path)
    try:
        model.load_state_dict(contents["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint of this model ({str(error).splitlines()[-1].strip()})") from None
    return int(contents["step"])
