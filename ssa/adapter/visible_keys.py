"""The number of keys that each query sees, from what transformers gives to an attention layer."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from ssa.errors import UserError


def visible_keys(mask: Tensor | None, cache: Cache | None, layer: int | None, hidden: Tensor) -> Tensor:
    """n for each token, its own key included: with a cache, padding, packed sequences and sliding windows.

    Args:
        mask: (B, 1, T, S), True or 0 where a query sees a key; None: the kernel's causal mask.
        cache: before the layer adds this batch to it.
        layer: its number in the cache; None: not known.
        hidden: the layer's input, (B, T, D).

    Raises:
        UserError: the number of cached keys is not known.

    Returns:
        (T,) or (B, T); 1 for tokens that see nothing, which are padding.
    """
    length = hidden.size(1)
    if mask is None:
        if length > 1 or cache is None:  # the kernel's causal mask; a cache is empty then
            return torch.arange(1, length + 1, device=hidden.device)
        if layer is None:
            raise UserError("model: a layer does not say which one it is, so that its cached keys cannot be counted")
        seen, _ = cache.get_mask_sizes(1, layer)
        return torch.full((1,), seen, device=hidden.device)
    seen_by = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen_by[:, 0].sum(-1).clamp(min=1)
