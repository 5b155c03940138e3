"""Checkpoints: written atomically, checked whenever they are read.

torch stores a CRC-32 of each tensor in the file, but does not compare it on loading; `read` does.

Where only the temperatures of a pretrained model are trained, a checkpoint holds their tensors alone and, under
``base``, the SHA-256 of the pretrained weights, which ``init_from`` in its config names.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssa.config import Config, parse, upgraded
from ssa.errors import UserError, first_line
from ssa.files import refuse_lfs_pointer, remove, replacing
from ssa.model.language_model import LanguageModel
from ssa.model.sharding import as_shard
from ssa.model.stored_sizes import EMBEDDING, wrong_size
from ssa.pretrained.load import load_pretrained
from ssa.pretrained.source import weights_hash
from ssa.record.inputs import Inputs
from ssa.record.run_files import config_changes


def read(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint; its tensors are memory-mapped.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint.
    """
    refuse_lfs_pointer(path, str(path))
    try:
        with zipfile.ZipFile(path) as records:
            damaged = records.testzip()
        if damaged is not None:
            raise ValueError(f"wrong checksum of {damaged}")
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # of any kind: the unpickler checks nothing
        raise UserError(f"{path}: damaged, or not a checkpoint ({first_line(error)})") from None
    if not isinstance(contents, dict) or not isinstance(contents.get("config"), dict):
        raise UserError(f"{path}: not a checkpoint of this project")
    return contents


def save(contents: Mapping[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint atomically, beside the old one, which becomes ``previous``.

    There are never more than two: what ``previous`` was is removed first.

    Raises:
        OSError: the disk is full, for example.
    """
    if previous is not None:
        remove(previous)
    with replacing(path) as partial:
        with partial.open("wb") as file:
            try:
                torch.save(contents, file)
            except RuntimeError as error:  # torch's own complaint about the rest of the file
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
        if previous is not None:
            with suppress(FileNotFoundError):
                os.replace(path, previous)


def check_config(contents: Mapping[str, Any], config: Config, path: Path) -> None:
    """Refuse a checkpoint of another config.

    Raises:
        UserError: names the first difference.
    """
    changes = config_changes(parse(upgraded(contents["config"])), config)
    if changes:
        raise UserError(f"{path}: its config is another than config.yaml says ({changes[0]}): one of them was changed")


@dataclass(frozen=True)
class BestWeights:
    """The contents of a ``best`` checkpoint: tensors by name, the optimizer step, and the config of its run."""

    path: Path
    tensors: dict[str, Tensor]
    step: int
    vocab_size: int

    def sha256(self) -> str:
        """SHA-256 over the names, types, shapes and values of the tensors, whatever file they are in."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def load_into(self, model: LanguageModel) -> None:
        """Load the weights.

        Raises:
            UserError: the model is another.
        """
        try:
            state = model.state_dict()
            model.load_state_dict({name: as_shard(tensor, state.get(name)) for name, tensor in self.tensors.items()})
        except RuntimeError as error:
            last = str(error).splitlines()[-1].strip()
            raise UserError(f"{self.path}: not a checkpoint of this model ({last})") from None


def base_hash(config: Config, inputs: Inputs) -> str | None:
    """The hash of the pretrained weights that checkpoints of a run refer to; None: they hold all tensors.

    ``inputs``: hashes of what the run reads; without the pretrained weights, as after they were removed, None.
    """
    if config.optim.train == "all":
        return None
    return next(iter(inputs.get("init_from", {}).values()), None)


def read_best(path: Path, config: Config, base: Mapping[str, Tensor] | None = None) -> BestWeights:
    """The best weights of a run.

    Args:
        base: tensors for those that the checkpoint refers to; None: they are loaded from ``init_from``.

    Raises:
        UserError: the checkpoint is damaged, or of another config, or the weights it refers to are not available.
    """
    contents = read(path)
    check_config(contents, config, path)
    try:
        tensors = contents["model"]
        if "base" in contents:
            tensors = {**(base or _pretrained(config, contents["base"], path)), **tensors}
        if config.model.hf_config is not None:
            return BestWeights(path, tensors, int(contents["step"]), int(config.model.vocab_size or 0))
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wrong := wrong_size(config.model.plain(), shapes):
            said = " x ".join(f"model.{field}={value}" for field, value in wrong.fields.items())
            raise UserError(f"{path}: its config says {said}, its tensors {wrong.stored}")
        return BestWeights(path, tensors, int(contents["step"]), shapes[EMBEDDING][0])
    except (KeyError, TypeError, AttributeError, IndexError, ValueError):
        raise UserError(f"{path}: not a checkpoint of this project's models") from None


def _pretrained(config: Config, digest: str, path: Path) -> dict[str, Tensor]:
    """The tensors of the pretrained model that a checkpoint refers to, and new temperatures."""
    alone = f"{path}: holds the temperatures alone"
    try:
        changed = weights_hash(str(config.init_from)) != digest
        model = None if changed else load_pretrained(config.model, str(config.init_from), config.seed)
    except UserError as error:
        raise UserError(f"{alone}, and the weights that they were trained on are not available: {error}") from None
    if model is None:
        raise UserError(f"{alone}, and init_from={config.init_from} has changed since they were trained: restore it")
    return model.state_dict()
