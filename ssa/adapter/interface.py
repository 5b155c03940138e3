"""Attention functions that are registered with transformers: the stock ones, with temperatures in front of them.

An adapted model has ``attn_implementation="ssa_sdpa"`` or ``"ssa_eager"``; modules without temperatures, such as
those of a vision tower, compute the stock function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ssa.adapter.layer import LayerTemperatures

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
Observer = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None], None]
BASES = ("sdpa", "eager")  # implementations whose masks say which keys a query sees
_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)


def adapted_name(base: str) -> str:
    """The implementation with temperatures in front of ``base``."""
    return f"ssa_{base}"


def traced_name(base: str) -> str:
    """The implementation that shows its inputs to an observer, see `observed`."""
    return f"ssa_traced_{base}"


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """In this block, `traced_name` calls ``observer(module, query, key, value, mask)`` first."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def _stock(base: str, module: nn.Module) -> AttentionFunction:
    """transformers' own function; the eager one is a global of the file that defines the module's forward."""
    if base == "eager":
        found: AttentionFunction = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
        return found
    registered: AttentionFunction = ALL_ATTENTION_FUNCTIONS[base]
    return registered


def _attend(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """(B, H, T, d), (B, K, S, d), (B, K, S, d) -> (B, T, H, d) and, from eager attention, its map."""
    temperatures = getattr(module, "temperature", None)
    if not isinstance(temperatures, LayerTemperatures):
        return _stock(base, module)(module, query, key, value, attention_mask, **options)
    query = temperatures.scaled_query(query)
    mixed, attention_map = _stock(base, module)(module, query, key, value, attention_mask, **options)
    mixed = temperatures.scaled_output(mixed)
    if temperatures.observer is not None:
        temperatures.observer(temperatures, query, key, attention_mask, options)
    return mixed, attention_map


def _traced(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    observer = _OBSERVER.get()
    if observer is not None:
        observer(module, query, key, value, attention_mask)
    return _stock(base, module)(module, query, key, value, attention_mask, **kwargs)


for _base in BASES:
    for _name, _function in ((adapted_name(_base), _attend), (traced_name(_base), _traced)):
        AttentionInterface.register(_name, partial(_function, _base))
        AttentionMaskInterface.register(_name, ALL_MASK_ATTENTION_FUNCTIONS[_base])
