"""Comparison of a model's config with the shapes of its stored tensors, before anything of that size is built."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

EMBEDDING = "token_embedding.weight"


class WrongSize(NamedTuple):
    """Fields of `ModelConfig` with their values, and the number that they, or their product, should be."""

    fields: dict[str, int]
    stored: int


def wrong_size(sizes: Mapping[str, object], shapes: Mapping[str, Sequence[int]]) -> WrongSize | None:
    """The first size that differs from that of the tensors.

    Args:
        sizes: fields of `ModelConfig`, not yet checked; null and values that are no whole numbers are passed over.
        shapes: by the names of the parameters, with `EMBEDDING`.  Weights may be transposed.
    """
    vocab_size, d_model = shapes[EMBEDDING]
    stored: dict[tuple[str, ...], int] = {
        ("n_layer",): len({name.split(".")[1] for name in shapes if name.startswith("blocks.")}),
        ("vocab_size",): vocab_size,
        ("d_model",): d_model,
    }
    if "position_embedding.weight" in shapes:
        stored["max_positions",] = shapes["position_embedding.weight"][0]
    if up := shapes.get("blocks.0.mlp.up.weight"):
        stored["d_ff",] = math.prod(up) // max(1, d_model)
    if out := shapes.get("blocks.0.attention.out.weight"):
        stored["n_head", "head_dim"] = math.prod(out) // max(1, d_model)
    for names, number in stored.items():
        fields = {name: value for name in names if isinstance(value := sizes.get(name), int)}
        if len(fields) == len(names) and math.prod(fields.values()) != number:
            return WrongSize(fields, number)
    return None
