"""Training steps of an adapted model in several processes, which torchrun starts.  Arguments: base, way, new folder."""

from __future__ import annotations

import sys

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

import ssa


def main(base: str, way: str, folder: str) -> None:
    model = ssa.adapt(AutoModelForCausalLM.from_pretrained(base), train="all")
    optimizer_of = lambda model: torch.optim.SGD(model.parameters(), 1.0)  # noqa: E731
    rank, size = 0, 1
    if way == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        rank, size = accelerator.process_index, accelerator.num_processes
        trained, optimizer = accelerator.prepare(model, optimizer_of(model))
    else:
        if way == "fsdp":
            distributed.init_process_group("gloo")
            rank, size = distributed.get_rank(), distributed.get_world_size()
            mesh = init_device_mesh("cpu", (size,))
            for block in model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        trained, optimizer = model, optimizer_of(model)
    ids = torch.randint(0, 100, (4, 30), generator=torch.Generator().manual_seed(0)).chunk(size)[rank]
    for _ in range(3):
        trained(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)) if way == "fsdp" else None
    if rank == 0:
        ssa.save(model, folder, state_dict=state)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
