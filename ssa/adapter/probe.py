"""Running a model on a few tokens: what it computes, and what its attention layers are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ssa.adapter import interface, tracing
from ssa.adapter.layer import LayerPlan
from ssa.errors import UserError, first_line

_CLOSE = 1e-3  # in standard deviations: rounding depends on the sizes of batches of experts, for example


def vocabulary(model: PreTrainedModel) -> int:
    """The number of token embeddings."""
    return int(model.get_input_embeddings().weight.size(0))


def implementation(model: PreTrainedModel) -> str:
    """The attention implementation of the language model."""
    return str(model.config.get_text_config()._attn_implementation)


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """Set it; those of other parts, such as a vision tower, stay."""
    model.config.get_text_config()._attn_implementation = name


@contextmanager
def probing(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode, without gradients."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def plans(model: PreTrainedModel) -> list[LayerPlan]:
    """What is known of each softmax attention layer.

    Raises:
        UserError: there is none, or one cannot be understood.
    """
    found: list[LayerPlan] = []
    base = implementation(model)
    set_implementation(model, interface.traced_name(base))
    try:
        with probing(model):
            for length in tracing.LENGTHS:
                layers = tracing.attention_layers(model, partial(run, model, length))
                if all(length not in seen.heads.values() for _, _, seen in layers.values()):
                    break
            if not layers:
                raise UserError(
                    f"model: {type(model).__name__} has no attention that goes through transformers' AttentionInterface"
                )
            by_structure: dict[tuple[Any, ...], LayerPlan] = {}
            for name, (attention, call, seen) in layers.items():
                structure = tracing.structure(attention, call)
                if structure not in by_structure:
                    by_structure[structure] = tracing.trace(name, attention, call, seen)
                found.append(replace(by_structure[structure], name=name))
            return found
    finally:
        set_implementation(model, base)


def causal_logits(model: PreTrainedModel) -> Tensor:
    """Its logits, see `run`.

    Raises:
        UserError: they are not finite, or those of a token depend on later tokens.
    """
    length, name = tracing.LENGTHS[0], type(model).__name__
    with probing(model):
        logits, changed = run(model, length), run(model, length, change_last=True)
    seen = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    seen[:, -1] = False
    seen[1, : tracing.PADDING] = False
    one, other = logits[seen].float(), changed[seen].float()
    if not one.isfinite().all():
        raise UserError(f"model: {name}: its logits are not finite; its weights are damaged, or its values overflow")
    if (one - other).abs().max() > _CLOSE * one.std():
        raise UserError(f"model: {name} is not causal as it is configured: the logits of a token depend on later ones")
    return logits


def run(model: PreTrainedModel, length: int, change_last: bool = False) -> Tensor:
    """Logits of two rows of tokens, the second padded on the left.

    Raises:
        UserError: the model needs more than that.
    """
    ids = _ids(model, length)
    if change_last:
        ids[:, -1] = (ids[:, -1] + 1) % vocabulary(model)
    mask = torch.ones_like(ids)
    mask[1, : tracing.PADDING] = 0
    try:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    except UserError:
        raise
    except Exception as error:
        name = type(model).__name__
        raise UserError(f"model: {name} does not run on token ids alone ({first_line(error)})") from None
    return logits


def run_with_cache(model: PreTrainedModel) -> None:
    """A pass that fills a cache, and one that reads it."""
    ids = _ids(model, tracing.LENGTHS[0])
    outputs = model(input_ids=ids, use_cache=True)
    for name, cache in outputs.items():
        if isinstance(cache, Cache):
            model(input_ids=ids[:, :1], use_cache=True, **{name: cache})


def _ids(model: PreTrainedModel, length: int) -> Tensor:
    device = model.get_input_embeddings().weight.device
    return (torch.arange(2 * length, device=device) * 7 + 3).view(2, length) % vocabulary(model)
