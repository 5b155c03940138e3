"""Loss and gradients over large vocabularies: time, and memory beyond what the gradients take."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Figure, in_process, interleaved, ratio, seconds
from benchmarks.settings import Settings
from ssa.model.loss import linear_cross_entropy

#: tokens, width, vocabulary; the last is Llama 3 1B with one sequence of 1,024
SIZES = ((2048, 128, 2048), (2048, 128, 50257), (1024, 2048, 128256))
MEMORY_GOAL = "<= 300"  # MB, at the largest

_PEAK = """
import json, torch
from benchmarks.loss import inputs, losses
from ssa.device import peak_memory_bytes, reset_peak_memory
cpu = torch.device("cpu")
hidden, weight, targets = inputs({tokens}, {width}, {vocabulary})
hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
gradients = 4 * (hidden.numel() + weight.numel())  # a second time, until they are added
reset_peak_memory(cpu)
before = peak_memory_bytes(cpu)
losses["{name}"](hidden, weight, targets).backward()
print(json.dumps({{"mb": (peak_memory_bytes(cpu) - before - gradients) / 1e6}}))
"""


def _plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ weight.mT).float(), targets)


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, targets, "mean")


losses: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": _ours, "all logits": _plain}


def figures(settings: Settings) -> list[Figure]:
    """Time and memory of each, and their ratio."""
    found = []
    for number, (tokens, width, vocabulary) in enumerate(SIZES):
        sizes = f"{tokens:,} tokens, {width:,} wide, V {vocabulary:,}"
        given = inputs(tokens, width, vocabulary)
        cases = {name: _step(function, given) for name, function in losses.items()}
        times = interleaved(cases, settings.rounds if vocabulary < 10_000 else 3, warmup=1)
        found += [seconds(f"loss and gradients, {name}, {sizes}", values) for name, values in times.items()]
        found.append(ratio(f"loss and gradients, ours / all logits, {sizes}", times["ours"], times["all logits"]))
        for name in losses:
            peak = in_process(_PEAK.format(tokens=tokens, width=width, vocabulary=vocabulary, name=name))
            goal = MEMORY_GOAL if name == "ours" and number == len(SIZES) - 1 else None
            found.append(
                Figure(f"memory of the loss beyond its gradients, {name}, {sizes}", peak["mb"], "MB", goal=goal)
            )
    return found


def inputs(tokens: int, width: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, an output matrix and targets."""
    draws = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(tokens, width, generator=draws), torch.randn(vocabulary, width, generator=draws)
    weight.mul_(0.02)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, vocabulary, (tokens,), generator=draws)


def _step(loss: Callable[[Tensor, Tensor, Tensor], Tensor], given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], None]:
    def run() -> None:
        hidden, weight, targets = given
        hidden.grad = weight.grad = None
        loss(hidden, weight, targets).backward()  # type: ignore[no-untyped-call]

    return run
