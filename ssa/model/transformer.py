"""The decoder-only transformer: GPT-2, Pythia (GPT-NeoX) or Llama by its config, with any temperatures.

Letters: B batch, T tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint

from ssa.model.attention import AttentionMetadata, CausalSelfAttention, Observer, causal_mask
from ssa.model.config import ModelConfig
from ssa.model.dropout import Dropout
from ssa.model.flex import block_mask
from ssa.model.kv_cache import KVCache, LayerCache
from ssa.model.language_model import LanguageModel
from ssa.model.rotary import rotation
from ssa.model.sharding import draw_normal
from ssa.model.temperature import Temperature
from ssa.model.temperature_rules import INIT_STD

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
_NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


class MLP(nn.Module):
    """D -> d_ff -> D; gated: the activation of one projection times another (with SiLU: SwiGLU)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[config.activation]
        self.gate = nn.Linear(config.d_model, config.d_ff, bias=config.mlp_bias) if config.gated_mlp else None
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.mlp_bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        inner = self.activation(self.up(x)) if self.gate is None else self.activation(self.gate(x)) * self.up(x)
        output: Tensor = self.down(inner)
        return output


class Block(nn.Module):
    """Attention and MLP, each reading the normalized residual stream: one after the other, or in parallel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.parallel_residual = config.parallel_residual
        self.attention_norm = _norm(config)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = _norm(config)
        self.mlp = MLP(config)
        self.attention_dropout = Dropout(config.dropout)
        self.mlp_dropout = Dropout(config.dropout)

    def forward(
        self, x: Tensor, metadata: AttentionMetadata, cache: LayerCache | None = None, observe: Observer | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        seeds = metadata.dropout_seeds
        attended = x + self.attention_dropout(self.attention(self.attention_norm(x), metadata, cache, observe), seeds)
        read_by_mlp = x if self.parallel_residual else attended
        output: Tensor = attended + self.mlp_dropout(self.mlp(self.mlp_norm(read_by_mlp)), seeds)
        return output


class Transformer(LanguageModel):
    """This project's own model.

    Args:
        config: the architecture and its temperatures.
        vocab_size: V, by default the config's.
        seed: of `reset_parameters`; with None, weights are to be loaded.
    """

    log_frequency: Tensor | None

    def __init__(self, config: ModelConfig, vocab_size: int | None = None, seed: int | None = 0) -> None:
        super().__init__()
        vocab_size = vocab_size or config.vocab_size
        if vocab_size is None:
            raise ValueError("vocab_size: not given, and not in the config")
        self.config = config
        self.checkpoint_activations = False
        self.token_embedding = nn.Embedding(vocab_size, config.d_model)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_positions, config.d_model) if learned else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = _norm(config)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        self.tie_head()
        dropouts = [module for module in self.modules() if isinstance(module, Dropout)]
        for site, dropout in enumerate(dropouts):
            dropout.site = site
        self.n_dropout_sites = len(dropouts)
        frequencies = torch.zeros(vocab_size) if config.temperature.needs_frequencies else None
        self.register_buffer("log_frequency", frequencies)  # (V,), standardized
        if seed is not None:
            self.reset_parameters(seed)

    def tie_head(self) -> None:
        """Shares the token embedding with the output matrix, if the config says so."""
        if self.config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        """Draws new weights as GPT-2 does, for every architecture: normal(0, 0.02), biases 0, norms the identity,
        projections back into the residual stream smaller by sqrt(2 layers).  Temperatures: `reset_temperatures`.
        """
        generator = torch.Generator().manual_seed(seed)
        residual_std = INIT_STD / (2 * self.config.n_layer) ** 0.5
        for name, module in self.named_modules():
            tied = module is self.head and self.config.tie_embeddings
            if isinstance(module, nn.Linear | nn.Embedding) and not tied:
                std = residual_std if name.endswith(("attention.out", "mlp.down")) else INIT_STD
                draw_normal(module.weight, std, generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, nn.LayerNorm | nn.RMSNorm):
                module.reset_parameters()
        self.reset_temperatures(seed)

    @torch.no_grad()
    def reset_temperatures(self, seed: int) -> None:
        """Sets temperatures to their start values, with a generator of their own: at equal seed every variant has the
        same backbone weights.
        """
        generator = torch.Generator().manual_seed(seed)
        for temperature in self.temperatures():
            temperature.reset_parameters(generator)
        if self.log_frequency is not None:
            self.log_frequency.zero_()

    def first_temperatures(self) -> dict[str, Temperature]:
        found: Any = self.blocks[0].get_submodule("attention.temperature")
        return dict(found.items())

    def query_key_weights(self) -> list[tuple[Tensor, Tensor]]:
        config = self.config
        weights = (block.get_parameter("attention.qkv.weight") for block in self.blocks)  # ((H + 2 K) d, D)
        heads = (weight.reshape(-1, config.head_dim, config.d_model) for weight in weights)
        return [(each[: config.n_head], each[config.n_head : config.n_head + config.n_kv_head]) for each in heads]

    def output_matrix(self) -> nn.Module:
        return self.head

    def empty_cache(self) -> KVCache:
        return KVCache.empty(self.config.n_layer)

    def layers(self) -> list[nn.Module]:
        return list(self.blocks)

    @property
    def vocab_size(self) -> int:
        return self.token_embedding.num_embeddings

    def frequencies(self) -> Tensor | None:
        return self.log_frequency

    def _hidden(
        self,
        ids: Tensor,
        observe: Observer | None,
        visible_keys: Tensor | None,
        cache: KVCache | None,
        dropout_seeds: Tensor | None,
    ) -> Tensor:
        metadata = self._metadata(ids, visible_keys, cache, dropout_seeds)
        x = self.token_embedding(ids)  # (B, T, D)
        if self.position_embedding is not None:
            x = x + self.position_embedding(metadata.visible_keys - 1)
        x = self.dropout(x, dropout_seeds)
        plain = cache is None and observe is None
        recompute = self.checkpoint_activations and self.training and torch.is_grad_enabled() and plain
        for number, block in enumerate(self.blocks):
            if recompute:
                x = checkpoint(block, x, metadata, use_reentrant=False)
            else:
                x = block(x, metadata, cache.layers[number] if cache is not None else None, observe)
        if cache is not None:
            cache.length += ids.size(1)
        normalized: Tensor = self.final_norm(x)
        return normalized

    def _metadata(
        self, ids: Tensor, visible_keys: Tensor | None, cache: KVCache | None, dropout_seeds: Tensor | None
    ) -> AttentionMetadata:
        past, length = cache.length if cache is not None else 0, ids.size(1)
        all_visible = visible_keys is None
        if visible_keys is None:
            visible_keys = torch.arange(past + 1, past + length + 1, device=ids.device)
        mask: Tensor | BlockMask | None
        if all_visible and (past == 0 or length == 1):
            mask = None  # the kernel's causal mask suffices
        elif self.flex_attention and self.training and cache is None:
            mask = block_mask(visible_keys.expand_as(ids))
        else:
            mask = causal_mask(visible_keys, past + length)
        turn = rotation(self.config, visible_keys - 1) if self.config.positions == "rotary" else None
        log_frequency = self.log_frequency[ids] if self.log_frequency is not None else None
        return AttentionMetadata(visible_keys, mask, turn, log_frequency, dropout_seeds)


def _norm(config: ModelConfig) -> nn.Module:
    kind: Any = _NORMS[config.norm]
    module: nn.Module = kind(config.d_model, eps=config.norm_eps)
    return module
