"""Reading checkpoints: damaged ones are the user's to know, in one line."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from ssa.errors import UserError
from ssa.model.transformer import Transformer


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, its tensors mapped from the file rather than loaded.

    Raises:
        UserError: it is missing, truncated or not a checkpoint.
    """
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


def read_step(path: Path) -> int:
    """The optimizer step that a checkpoint goes on from."""
    return int(read(path)["global_step"])


def vocabulary(path: Path) -> int:
    """The tokens that a ``best`` checkpoint's model has.

    Raises:
        UserError: the checkpoint is damaged.
    """
    try:
        return int(read(path)["model"]["token_embedding.weight"].shape[0])
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{path}: not a checkpoint of a model of this project") from None


def load_weights(model: Transformer, path: Path) -> int:
    """Loads a ``best`` checkpoint's weights into a model of the same config; returns its optimizer step.

    Raises:
        UserError: the checkpoint is damaged, or of another model.
    """
    contents = read(path)
    try:
        model.load_state_dict(contents["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path}: not a checkpoint of this model ({str(error).splitlines()[-1].strip()})") from None
    return int(contents["step"])
