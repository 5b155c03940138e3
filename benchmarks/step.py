"""A training step: forward, backward, clipping and AdamW, vanilla and SSA, beside other implementations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import nn

from benchmarks import models
from benchmarks.measure import Figure, interleaved, ratio, seconds
from benchmarks.models import Loss, Shape
from benchmarks.settings import Settings

SMALL = Shape(n_layer=4, d_model=128, n_head=4, length=256, batch=8, vocabulary=2048)
LARGE = Shape(n_layer=6, d_model=384, n_head=6, length=512, batch=4, vocabulary=8192)
#: goals at each shape: vanilla against nanoGPT, SSA against vanilla
GOALS = {SMALL: ("<= 1.00", "<= 1.08"), LARGE: ("<= 0.97", "<= 1.03")}
COMPILED_GOAL = "<= 1.03"


def figures(settings: Settings) -> list[Figure]:
    """Times of each implementation, and ratios to vanilla and to nanoGPT."""
    found = []
    for shape, (to_nanogpt, to_vanilla) in GOALS.items():
        cases = {"vanilla": step(*models.ours(shape), shape), "SSA": step(*models.ours(shape, models.SSA), shape)}
        if settings.nanogpt:
            peer, goal = "nanoGPT", to_nanogpt
            cases[peer] = step(*models.nanogpt(shape, settings.nanogpt), shape)
        else:
            peer, goal = "plain PyTorch model of nanoGPT's shape", to_nanogpt
            cases[peer] = step(*models.plain(shape), shape)
        cases["transformers"] = step(*models.transformers_gpt2(shape), shape)
        if importlib.util.find_spec("litgpt"):
            cases["litgpt"] = step(*models.litgpt_gpt2(shape), shape)
        times = interleaved(cases, settings.rounds)
        found += [seconds(f"{name}, {shape}", values) for name, values in times.items()]
        found.append(ratio(f"SSA / vanilla, {shape}", times["SSA"], times["vanilla"], to_vanilla))
        found += [
            ratio(f"vanilla / {name}, {shape}", times["vanilla"], values, goal if name == peer else None)
            for name, values in times.items()
            if name not in ("vanilla", "SSA")
        ]
        compiled = {name: step(*models.ours(shape, rule), shape, compiled=True) for name, rule in RULES.items()}
        times = interleaved(compiled, settings.rounds)
        found += [seconds(f"{name}, compiled, {shape}", values) for name, values in times.items()]
        found.append(ratio(f"SSA / vanilla, compiled, {shape}", times["SSA"], times["vanilla"], COMPILED_GOAL))
    return found


RULES = {"vanilla": models.VANILLA, "SSA": models.SSA}


def step(model: nn.Module, loss: Loss, shape: Shape, compiled: bool = False, device: str = "cpu") -> Callable[[], None]:
    """A function that trains the model by one step, as `ssa.training` does; on CUDA under bf16 autocast."""
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, targets = (some.to(device) for some in shape.tokens())
    if compiled:
        for block in model.blocks:  # type: ignore[union-attr]
            block.compile()

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss(ids, targets)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run
