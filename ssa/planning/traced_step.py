"""Bytes of tensors alive in a training step, counted on tensors without storage.

The step runs on fake tensors, which have shapes and dtypes but no data: a model of any size takes seconds and no
memory.  Autograd keeps the same tensors for the backward pass as in training, so the count has no constants and follows
the code of the model.  Not counted: memory inside kernels, and what an allocator holds without using it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssa.device import Precision
from ssa.model.config import ModelConfig
from ssa.model.loss import chunks_as_on
from ssa.model.transformer import Transformer

SMALL = 2**25  # bytes; glibc maps larger blocks on their own and returns them when freed (M_MMAP_THRESHOLD, mallopt(3))


class StepBytes(NamedTuple):
    """Peak bytes of a micro-batch beside those of weights, gradients and optimizer state."""

    activations: int  # alive after the last block: what autograd keeps, bf16 copies of weights included
    loss: int  # added in the loss: logits of a chunk, gradients of the hidden states and of the output matrix
    backward: int  # by which the backward pass exceeds both
    small: int  # at the peak, of all these, in tensors below `SMALL`
    small_in_graph: int  # the same of a step that recomputes nothing, whose tensors leave their marks in the heap


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that operations in the block have allocated and nothing has freed.

    Attributes:
        now: bytes alive.
        peak: the most since the start, or since `restart`.
        small, small_at_peak: those of storages below `SMALL`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.small = self.small_at_peak = 0
        self._counted: set[int] = set()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak, self.small_at_peak = self.now, self.small

    def __torch_dispatch__(
        self, function: Callable[..., Any], _: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._counted:  # a view, or the result of an operation in place
            return
        self._counted.add(key)
        self.now += size
        self.small += size if size < SMALL else 0
        if self.now > self.peak:
            self.restart()
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.now -= size
        self.small -= size if size < SMALL else 0


@functools.cache
def trace_step(
    model: ModelConfig,
    vocab_size: int,
    shape: tuple[int, int],
    precision: Precision,
    device: str = "cpu",
    *,
    accumulates: bool = False,
    temperatures_alone: bool = False,
    dense_mask: bool = False,
    checkpointed: bool = False,
) -> StepBytes:
    """Traces forward and backward pass of one micro-batch in the middle of training.

    Gradients of the step before live until the forward pass is over, as Lightning clears them after it; those of a
    step with several micro-batches live all along.

    Args:
        model: the architecture.
        vocab_size: V.
        shape: of a micro-batch, (B, T).
        precision: of matrix products.
        device: ``cpu`` or ``cuda``, for the size of the loss's chunks.
        accumulates: whether a step has several micro-batches.
        temperatures_alone: whether all other parameters are frozen.
        dense_mask: whether attention has a dense mask.
        checkpointed: whether activations inside blocks are recomputed in the backward pass.
    """
    whole = None
    if checkpointed:
        how = {"accumulates": accumulates, "temperatures_alone": temperatures_alone, "dense_mask": dense_mask}
        whole = trace_step(model, vocab_size, shape, precision, device, **how)
    with FakeTensorMode(), LiveBytes() as live, chunks_as_on(device):
        transformer = Transformer(model, vocab_size, seed=None)
        if temperatures_alone:
            transformer.freeze_backbone()
        transformer.checkpoint_activations = checkpointed
        for parameter in transformer.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        ids = torch.zeros(shape, dtype=torch.long)
        held, held_small, after_blocks = live.now, live.small, 0

        def note(*_: Any) -> None:
            nonlocal after_blocks
            after_blocks = live.now - held
            live.restart()

        transformer.final_norm.register_forward_hook(note)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            visible_keys = torch.ones_like(ids) if dense_mask else None
            loss = transformer(ids, ids, visible_keys=visible_keys, reduction="mean")
        after_loss, small = live.peak - held, live.small_at_peak - held_small
        if not accumulates:
            transformer.zero_grad()
        live.restart()
        loss.backward()
        more = live.peak - held - after_loss
        if more > 0:
            small = live.small_at_peak - held_small
        small = max(small, 0)
        return StepBytes(after_blocks, after_loss - after_blocks, max(more, 0), small, whole.small if whole else small)
