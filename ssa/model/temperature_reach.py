"""How far temperatures have moved from 1: their largest terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ssa.model.language_model import LanguageModel
from ssa.model.sharding import gathered
from ssa.model.temperature_rules import LengthTerm, Term

KEYS = 1024  # visible keys at which position terms are compared, whatever the context


@contextmanager
def temperature_reach(model: LanguageModel) -> Iterator[dict[str, float]]:
    """The largest terms of a model's temperatures over its forward passes in the block, which are not compiled.

    Yields:
        A dict that is filled when the block ends.  ``temperature_position``: the largest ``1 + position term`` at
        1,024 keys, over layers, heads and projections; 1 without position terms.  ``temperature_token``: the largest
        absolute token term over tokens, layers, heads and projections (``|tanh|`` of the rules that have one); 0
        without token terms.
    """
    terms = [module for module in model.modules() if isinstance(module, Term)]
    token_terms, position_terms = ([term for term in terms if term.slot == slot] for slot in ("token", "position"))
    largest = [0.0]

    def observe(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        largest.append(output.detach().abs().max().item())

    handles = [term.register_forward_hook(observe) for term in token_terms]
    found: dict[str, float] = {}
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    at_1024 = [1 + _largest(term) for term in position_terms if isinstance(term, LengthTerm)]
    found |= {"temperature_position": max(at_1024, default=1.0), "temperature_token": max(largest)}


@torch.no_grad()
def _largest(term: LengthTerm) -> float:
    scalar = gathered(term.get_parameter(term.scalar).detach()).double().cpu()
    return term.value(scalar, torch.tensor(float(KEYS), dtype=torch.float64)).max().item()
