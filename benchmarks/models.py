"""The models of the benchmarks: ours, and the same architecture in other libraries."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.errors import UserError
from ssa.model.config import ModelConfig, TemperatureConfig, Terms
from ssa.model.transformer import Transformer

Loss = Callable[[Tensor, Tensor], Tensor]  # mean loss of ids and targets, (B, T) each
VANILLA = TemperatureConfig()
SSA = TemperatureConfig(
    name="ssa", query=Terms(token="shared", position="log"), value=Terms(token="shared", position="log")
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model and its batch."""

    n_layer: int
    d_model: int
    n_head: int
    length: int  # T
    batch: int  # B
    vocabulary: int  # V

    def __str__(self) -> str:
        return f"{self.n_layer} layers, {self.d_model} wide, T {self.length:,}, B {self.batch}, V {self.vocabulary:,}"

    def tokens(self) -> tuple[Tensor, Tensor]:
        """Random ids and targets."""
        ids = torch.randint(
            0, self.vocabulary, (self.batch, self.length + 1), generator=torch.Generator().manual_seed(0)
        )
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def ours(shape: Shape, temperature: TemperatureConfig = VANILLA) -> tuple[nn.Module, Loss]:
    """GPT-2 with these temperatures."""
    config = ModelConfig(
        name="gpt2",
        size="benchmark",
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        d_model=shape.d_model,
        max_positions=shape.length,
        temperature=temperature,
    )
    model = Transformer(config, shape.vocabulary)
    return model, lambda ids, targets: model(ids, targets, reduction="mean")


def transformers_gpt2(shape: Shape) -> tuple[nn.Module, Loss]:
    """GPT-2 of the transformers library, with scaled_dot_product_attention and without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.length,
        n_embd=shape.d_model,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model: Any = GPT2LMHeadModel(config)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=ids).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return model, loss


def litgpt_gpt2(shape: Shape) -> tuple[nn.Module, Loss]:
    """litgpt's model, with GPT-2's sizes and biases; it has rotary positions."""
    from litgpt.config import Config
    from litgpt.model import GPT

    config = Config(
        name="benchmark",
        block_size=shape.length,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.d_model,
        bias=True,
    )
    model = GPT(config)
    return model, lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())


def nanogpt(shape: Shape, path: str) -> tuple[nn.Module, Loss]:
    """The model in nanoGPT's ``model.py``.

    Raises:
        UserError: the file is not nanoGPT's.
    """
    if not Path(path).is_file():
        raise UserError(f"nanogpt={path}: no such file; valid: nanoGPT's model.py")
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        config = module.GPTConfig(
            block_size=shape.length,
            vocab_size=shape.vocabulary,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.d_model,
            dropout=0.0,
            bias=True,
        )
        model = module.GPT(config)
    except (AttributeError, TypeError) as error:
        raise UserError(f"nanogpt={path}: not nanoGPT's model.py ({error})") from None
    return model, lambda ids, targets: model(ids, targets)[1]


def materialized_attention(query: Tensor, key: Tensor, value: Tensor, alpha: Tensor) -> Tensor:
    """Causal attention by T x T maps, (B, H, T, d) each, each row of the logits times ``1 + sigmoid(alpha) log(n)``."""
    n = torch.arange(1, query.size(2) + 1, device=query.device)
    logits = query @ key.mT / math.sqrt(query.size(-1))
    logits = logits * (1 + torch.sigmoid(alpha) * n.log()[:, None])
    maps = logits.masked_fill(n[:, None] < n, -math.inf).softmax(-1)
    return maps @ value


class PlainGPT(nn.Module):
    """A GPT-2 in the most direct PyTorch, all logits at once: what nanoGPT's shape costs where its file is not given.

    ``materialized``: with the position rule on T x T maps, as in code that computes attention in Python.
    """

    def __init__(self, shape: Shape, materialized: bool = False) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.alpha = nn.Parameter(torch.full((shape.n_layer, shape.n_head, 1, 1), -4.5)) if materialized else None
        width = shape.d_model
        self.tokens, self.positions = nn.Embedding(shape.vocabulary, width), nn.Embedding(shape.length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * shape.n_layer + 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(shape.n_layer))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(shape.n_layer))
        self.up = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(shape.n_layer))
        self.down = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(shape.n_layer))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of ids and targets, (B, T)."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1), device=ids.device))
        for number, (qkv, out, up, down) in enumerate(zip(self.qkv, self.out, self.up, self.down, strict=True)):
            heads = self.norms[2 * number](x)
            q, k, v = (some.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for some in qkv(heads).chunk(3, dim=-1))
            if self.alpha is None:
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                mixed = materialized_attention(q, k, v, self.alpha[number])
            x = x + out(mixed.transpose(1, 2).flatten(2))
            x = x + down(F.gelu(up(self.norms[2 * number + 1](x))))
        logits = F.linear(self.norms[-1](x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def plain(shape: Shape, materialized: bool = False) -> tuple[nn.Module, Loss]:
    """`PlainGPT`."""
    model = PlainGPT(shape, materialized)
    return model, lambda ids, targets: model(ids, targets)
