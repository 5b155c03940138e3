"""Numbers of parameters and the size of the vocabulary, before there is a model or any text."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from ssa.config import Config
from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.text.tokenization import known_vocabulary, trained_entries

_known_vocabulary = functools.cache(known_vocabulary)
_ASSUMED = 50_257  # entries of GPT-2's tokenizer


class Vocabulary(NamedTuple):
    """The number of entries V, and its source."""

    size: int
    source: str


class Parameters(NamedTuple):
    """Numbers of parameters."""

    total: int
    non_embedding: int  # without embeddings and output matrix
    temperature: int
    trained: int
    block: int  # one of the layers
    block_trained: int
    block_matrices: int  # those that multiply each token's features: 2 FLOPs each, per token
    head: int  # the output matrix, V D, tied or not
    n_layer: int

    @property
    def root(self) -> int:
        """Outside the layers: embeddings, last norm, output matrix."""
        return self.total - self.n_layer * self.block

    @property
    def root_trained(self) -> int:
        return self.trained - self.n_layer * self.block_trained


def vocabulary(config: Config) -> Vocabulary:
    """V of a run, without its text: the model's, else the tokenizer's, else GPT-2's is assumed."""
    if config.model.vocab_size is not None:
        return Vocabulary(config.model.vocab_size, "model.vocab_size")
    name = config.data.tokenizer
    if entries := trained_entries(name):
        return Vocabulary(entries, f"data.tokenizer={name}")
    if known := _known_vocabulary(name, config.data.cache_dir):
        return Vocabulary(known, f"data.tokenizer={name}")
    assumed = "" if name == "gpt2" else f"; assumed, as {name} is not on this machine"
    return Vocabulary(_ASSUMED, f"GPT-2's tokenizer{assumed}")


@functools.cache
def count_parameters(model: ModelConfig, vocab_size: int, temperatures_alone: bool = False) -> Parameters:
    """The numbers of a model, from one of its equal layers on the meta device: without memory, in milliseconds."""
    with torch.device("meta"):
        small = Transformer(replace(model, n_layer=1), vocab_size, seed=None)
    if temperatures_alone:
        small.freeze_backbone()
    counts, block, others = small.count_parameters(), list(small.blocks[0].parameters()), model.n_layer - 1
    size, trained = _number(block), _number(p for p in block if p.requires_grad)
    return Parameters(
        total=counts["total"] + others * size,
        non_embedding=counts["non_embedding"] + others * size,
        temperature=model.n_layer * counts["temperature"],
        trained=_number(p for p in small.parameters() if p.requires_grad) + others * trained,
        block=size,
        block_trained=trained,
        block_matrices=_number(p for p in block if p.ndim >= 2),
        head=vocab_size * model.d_model,
        n_layer=model.n_layer,
    )


def _number(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
