"""Checkpoints of sharded models: a folder of `torch.distributed.checkpoint`, to which every process writes its shards.

::

    last.ckpt/
      rest.ckpt              all but the tensors of the model and of its optimizer
      checksums.json         CRC-32 and size of the other files
      .metadata, *.distcp    the tensors, by the names below

``state_dict/<name>`` is a tensor of the model, ``optimizer/<number>/<key>`` one of the optimizer's for a parameter.  A
folder can be loaded by any number of processes, sharded or not, and a checkpoint in one file by a sharded model.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint import CheckpointException
from torch.optim import Optimizer

from ssa.errors import UserError, first_line
from ssa.files import partial_path, read_json, remove, write_json
from ssa.model.sharding import as_shard, gathered, is_sharded
from ssa.record import checkpoint as plain

REST, CHECKSUMS = "rest.ckpt", "checksums.json"
_CHUNK = 2**22  # bytes


def save(contents: Mapping[str, Any], path: Path, previous: Path) -> None:
    """Write a checkpoint atomically, by all processes, beside the old one, which becomes ``previous``.

    Args:
        contents: a Lightning checkpoint with one optimizer.
    """
    rest = dict(contents)
    tensors = {f"state_dict/{name}": tensor for name, tensor in rest.pop("state_dict").items()}
    (optimizer,) = rest.pop("optimizer_states")
    tensors |= _named(optimizer["state"])
    rest["optimizer_groups"] = optimizer["param_groups"]
    zero = distributed.get_rank() == 0
    chosen: list[Any] = [partial_path(path) if zero else None]
    if zero:
        remove(previous)
        remove(chosen[0])
        chosen[0].mkdir(parents=True)
    distributed.broadcast_object_list(chosen)
    partial: Path = chosen[0]
    try:
        dcp.save(tensors, checkpoint_id=partial)
    except CheckpointException as error:  # not an Exception
        raise _cause(error) from None
    own = {file.name: _checksum(file) for file in partial.glob(f"__{distributed.get_rank()}_*")}
    checksums: list[Any] = [None] * distributed.get_world_size()
    distributed.gather_object(own, checksums if zero else None)
    if zero:
        plain.save(rest, partial / REST)
        checksums.append({name: _checksum(partial / name) for name in (REST, ".metadata")})
        write_json(partial / CHECKSUMS, {name: value for found in checksums for name, value in found.items()})
        if path.exists():
            path.replace(previous)
        partial.replace(path)
    distributed.barrier()


def read_rest(path: Path) -> dict[str, Any]:
    """All but the tensors, after a check of all files.

    Raises:
        UserError: a file is missing or damaged.
    """
    for name, expected in read_json(path / CHECKSUMS).items():
        try:
            found = _checksum(path / name)
        except OSError as error:
            raise UserError(f"{path / name}: {error.strerror}: the checkpoint is incomplete") from None
        if found != expected:
            raise UserError(f"{path / name}: damaged (wrong checksum)")
    return plain.read(path / REST)


def read(path: Path) -> dict[str, Any]:
    """The whole checkpoint, as Lightning reads it from a file.

    Raises:
        UserError: it is damaged.
    """
    rest = read_rest(path)
    reader = dcp.FileSystemReader(path)
    tensors = {
        name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if isinstance(stored, dcp.metadata.TensorStorageMetadata)
    }
    _read_into(tensors, path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, name = name.partition("/")
        if kind == "optimizer":
            number, _, key = name.partition("/")
            state.setdefault(int(number), {})[key] = tensor
    groups = rest.pop("optimizer_groups")
    return {
        **rest,
        "state_dict": {
            name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith("state_dict/")
        },
        "optimizer_states": [{"state": dict(sorted(state.items())), "param_groups": groups}],
    }


@torch.no_grad()
def load(path: Path, module: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
    """Load a checkpoint, a folder or a file, into a sharded model and its optimizer, if there is one.

    Returns:
        The rest of the checkpoint.
    """
    parameters = module.state_dict()
    if path.is_dir():
        rest = plain.read(path / REST)  # its files were checked when it was chosen
        groups = rest.pop("optimizer_groups")
        tensors = {f"state_dict/{name}": parameters[name] for name in _names(path) if name in parameters}
        states = [_new_state(optimizer) for optimizer in optimizers]
        for state in states:
            tensors |= _named(state)
        _read_into(tensors, path)
    else:
        rest = plain.read(path)
        for name, tensor in rest.pop("state_dict").items():
            parameters[name].copy_(as_shard(tensor, parameters[name]))
        (stored,) = rest.pop("optimizer_states")
        groups, states = stored["param_groups"], [_new_state(optimizer) for optimizer in optimizers]
        for state in states:
            for number, values in state.items():
                for key, tensor in values.items():
                    tensor.copy_(as_shard(stored["state"][number][key], tensor))
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return rest


def whole(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The whole tensors, on rank 0; nothing elsewhere.  Collective.

    One at a time is gathered, and kept in a file without a name in ``folder``, so that none of them takes memory.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full = gathered(tensor)
        if distributed.get_rank() == 0:
            found[name] = _on_disk(full, folder)
    return found


def _on_disk(tensor: Tensor, folder: Path) -> Tensor:
    if tensor.numel() == 0:
        return tensor.cpu()
    path = folder / ".gathered.partial"
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, tensor.numel() * tensor.element_size())  # a full disk is an error here
    try:
        kept = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype)
    finally:
        path.unlink(missing_ok=True)  # it lasts as long as it is mapped
    return kept.view(tensor.shape).copy_(tensor)


def _named(states: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"optimizer/{number}/{key}": value for number, state in states.items() for key, value in state.items()}


def _names(path: Path) -> Iterable[str]:
    names = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return [name.removeprefix("state_dict/") for name in names if name.startswith("state_dict/")]


def _new_state(optimizer: Optimizer) -> dict[int, dict[str, Tensor]]:
    """AdamW's state, to be filled, by the number of the parameter."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        number: {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, requires_grad=False),
            "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
        }
        for number, parameter in enumerate(parameters)
    }


def _read_into(tensors: dict[str, Tensor], path: Path) -> None:
    """Fill tensors; each process reads what it needs."""
    alone = not any(map(is_sharded, tensors.values()))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is wanted
            dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=alone)
    except (Exception, CheckpointException) as error:  # of any kind
        cause = _cause(error) if isinstance(error, CheckpointException) else error
        raise UserError(f"{path}: damaged, or not a checkpoint ({first_line(cause)})") from None


def _cause(error: CheckpointException) -> BaseException:
    """What the first of the processes that failed has raised."""
    return next(iter(error.failures.values()))[0]


def _checksum(path: Path) -> str:
    """CRC-32 and size of a file."""
    value, size = 0, os.path.getsize(path)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x} {size}"
