"""The decoder-only transformer: GPT-2 (learned positions, pre-LN, tied head), with or without temperatures.

Letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.attention import CausalSelfAttention, Observer
from ssa.config import ModelConfig

INIT_STD = 0.02  # GPT-2's


class MLP(nn.Module):
    """Width -> 4 x width -> width, with GPT-2's tanh form of GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width)
        self.down = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        output: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return output


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, visible: Tensor, observe: Observer | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), visible, observe))
        x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x


class Transformer(nn.Module):
    """A language model: token ids in, next-token logits or losses out.

    Args:
        config: the architecture and its temperatures.
        vocab_size: V, the tokenizer's.
        seed: of the backbone's initialisation.  Temperatures start at constants and draw nothing from it, so at
            equal seed every variant has the same backbone weights.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        self.head.weight = self.token_embedding.weight
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """GPT-2's: normal(0, 0.02), biases 0, the projections back into the residual stream by sqrt(2 layers) less."""
        residual_std = INIT_STD / (2 * self.config.n_layer) ** 0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding) and module is not self.head:
                std = residual_std if name.endswith(("attention.out", "mlp.down")) else INIT_STD
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()

    def forward(self, ids: Tensor, targets: Tensor | None = None, observe: Observer | None = None) -> Tensor:
        """Next-token logits, or with targets the loss of each token.

        Args:
            ids: token ids, (B, T) with T up to ``config.max_positions``.
            targets: the tokens that follow, (B, T).
            observe: called once a layer, first to last, with its `AttentionInputs`.

        Returns:
            logits (B, T, V); or negative log-likelihoods (B, T), float32, in nats.
        """
        positions = torch.arange(ids.size(1), device=ids.device)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, D)
        for block in self.blocks:
            x = block(x, positions + 1, observe)
        logits: Tensor = self.head(self.final_norm(x))  # (B, T, V)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)

    def count_parameters(self) -> dict[str, int]:
        """Parameters in all, without the embeddings (tied head included there), and those of the temperatures."""
        total = sum(parameter.numel() for parameter in self.parameters())
        embeddings = self.token_embedding.weight.numel() + self.position_embedding.weight.numel()
        temperature = sum(p.numel() for name, p in self.named_parameters() if ".temperature." in name)
        return {"total": total, "non_embedding": total - embeddings, "temperature": temperature}
