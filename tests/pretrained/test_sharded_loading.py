"""Pretrained weights onto a sharded model: each rank reads and keeps its part.  The other ranks are simulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pretrained_folders import small, write_model
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from ssa.errors import UserError
from ssa.model.sharding import local_part
from ssa.model.transformer import Transformer
from ssa.pretrained import tensor_files
from ssa.pretrained.families import FAMILIES
from ssa.pretrained.load import load_pretrained
from ssa.training.strategies import place
from ssa.training.world import World

WORLD = World(rank=1, size=3, local_rank=1, local_size=3)  # three ranks divide none of the sizes


@pytest.fixture(autouse=True)
def one_of_three() -> Iterator[None]:
    """This process is a rank among others that only seem to be there.  torch caches which: one for all tests."""
    distributed.init_process_group("fake", store=FakeStore(), rank=WORLD.rank, world_size=WORLD.size)
    yield
    distributed.destroy_process_group()


def load(folder: Path, model_type: str) -> Transformer:
    return load_pretrained(small(model_type), str(folder), 0, lambda model: place(model, WORLD, torch.device("cpu")))


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_a_rank_keeps_its_rows(model_type: str, tmp_path: Path) -> None:
    whole = write_model(tmp_path, model_type).state_dict()
    for name, tensor in load(tmp_path, model_type).state_dict().items():
        rows = -(-len(tensor) // WORLD.size)
        assert torch.equal(local_part(tensor), whole[name][rows : 2 * rows]), name


@pytest.mark.parametrize("row", range(0, 32, 4))
def test_a_rank_reads_no_other_rows(row: int, tmp_path: Path, monkeypatch) -> None:
    write_model(tmp_path, "llama")
    monkeypatch.setattr(tensor_files, "_PIECE", 1)  # a row at a time
    name, file = "model.layers.0.mlp.down_proj.weight", tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors[name][row] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    if 11 <= row < 22:
        with pytest.raises(UserError, match=f"1 not finite .*: {name}$"):
            load(tmp_path, "llama")
    else:
        load(tmp_path, "llama")
