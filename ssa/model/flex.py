"""FlexAttention (arXiv 2412.05496) for masks of documents: the mask is a function, not a map of T x T in memory, and
blocks of keys that no query sees are skipped.  For CUDA: on the CPU, torch has no backward pass of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

MIN_HEAD_DIM = 16  # of the kernels


def block_mask(visible_keys: Tensor) -> BlockMask:
    """`ssa.model.attention.causal_mask` of T keys as a `BlockMask`, for all heads.  ``visible_keys``: (B, T)."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key > query - visible_keys[batch, query])

    rows, length = visible_keys.shape
    mask: BlockMask = _compiled(create_block_mask)(sees, rows, None, length, length, device=visible_keys.device)
    return mask


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask) -> Tensor:
    """Attention within a mask: (B, H, T, d), (B, K, T, d), (B, K, T, d) -> (B, H, T, d)."""
    function: Callable[..., Any] = flex_attention
    if not torch.compiler.is_compiling():  # in a compiled block it is compiled already
        function = _compiled(flex_attention)
    # Compiled together with rotated, transposed inputs, the kernel can read them in a wrong order (on CPU, torch 2.13).
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    mixed: Tensor = function(query, key, value, block_mask=mask, enable_gqa=key.size(1) != query.size(1))
    return mixed


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled: run eagerly, both would compute the whole map."""
    return torch.compile(function)
