"""Selective Self-Attention (SSA) in one file: arXiv 2411.12892, section 3.  Needs torch alone; paste it anywhere.

    q_i <- tau_q(x_i, i) q_i        v_j <- tau_v(x_j, j) v_j        then causal softmax attention as usual
    tau(x, n) = tanh(w . gelu(W x)) + 1 + sigmoid(alpha) log(n)     n = number of visible keys: 1, 2, ...

W x is the query or value itself ("weight sharing"), so the only new parameters are a vector w and a scalar alpha per
head, for queries and for values.  tau is an inverse temperature: larger means a spikier attention map.

The package (ssa/model) builds the same attention from configurable terms; tests/test_ssa_attention.py checks that the
outputs and gradients are equal.  `python ssa_attention.py` runs the example at the end.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelectiveTemperature(nn.Module):
    """tau(x, n) = tanh(w . gelu(W x)) + 1 + sigmoid(alpha) log(n), one w and one alpha per head."""

    def __init__(self, n_head: int, head_dim: int, alpha_init: float = -4.5) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n_head, head_dim))  # tanh(0) = 0: the token-aware term starts at the identity
        # sigmoid(-4.5) = 0.011: tau is at most 1.077 at n = 1,024.  To fine-tune a pretrained model, start at -10.
        self.alpha = nn.Parameter(torch.full((n_head,), alpha_init))

    def forward(self, projected: Tensor) -> Tensor:
        """Queries or values (B, H, T, head_dim) -> inverse temperatures (B, H, T, 1)."""
        n = torch.arange(1, projected.size(2) + 1, device=projected.device, dtype=projected.dtype)
        token = torch.tanh(F.gelu(projected) @ self.w.unsqueeze(-1))
        position = torch.sigmoid(self.alpha).view(-1, 1, 1) * n.log().view(-1, 1)
        return 1 + token + position


class CausalSelfAttention(nn.Module):
    """Vanilla multi-head causal self-attention."""

    def __init__(self, d_model: int, n_head: int, bias: bool = True) -> None:
        super().__init__()
        self.n_head = n_head
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out = nn.Linear(d_model, d_model, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, d_model) -> queries, keys, values, each (B, H, T, head_dim)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, d_model) -> (B, T, d_model)."""
        mixed: Tensor = F.scaled_dot_product_attention(*self.project(x), is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SelectiveSelfAttention(CausalSelfAttention):
    """The same attention with queries and values scaled by their inverse temperatures."""

    def __init__(self, d_model: int, n_head: int, bias: bool = True) -> None:
        super().__init__(d_model, n_head, bias)
        self.query_temperature = SelectiveTemperature(n_head, d_model // n_head)
        self.value_temperature = SelectiveTemperature(n_head, d_model // n_head)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in vanilla attention, then scaled; a rotary embedding, if there is one, comes after the scaling."""
        query, key, value = super().project(x)
        return self.query_temperature(query) * query, key, self.value_temperature(value) * value


def fit(layer: CausalSelfAttention, tokens: Tensor, steps: int = 1000) -> float:
    """Fit one head to a target map: even tokens attend to themselves, odd tokens to their whole past evenly.

    Returns:
        The KL divergence of the fitted map from the target, nats per query.
    """
    length = tokens.size(1)
    own, past = torch.eye(length), torch.ones(length, length).tril()
    target = torch.where(torch.arange(length)[:, None] % 2 == 0, own, past / past.sum(1, keepdim=True))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(steps):
        query, key, _ = layer.project(tokens)
        logits = (query @ key.mT / 8**0.5)[0, 0].masked_fill(past == 0, float("-inf"))
        loss = F.kl_div(F.log_softmax(logits, -1).masked_fill(past == 0, 0.0), target, reduction="sum") / length
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


if __name__ == "__main__":
    print("One head, 32 tokens. Target map: even tokens attend to themselves, odd tokens to their whole past evenly.")
    tokens = torch.randn(1, 32, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    print(f"vanilla: {fit(CausalSelfAttention(8, n_head=1), tokens):.3f} nats per query from the target")
    torch.manual_seed(0)
    ssa = SelectiveSelfAttention(8, n_head=1)
    print(f"SSA:     {fit(ssa, tokens):.3f} nats per query from the target")
    tau = ssa.query_temperature(CausalSelfAttention.project(ssa, tokens)[0])[0, 0, :, 0]
    print(f"mean tau of the queries: {tau[::2].mean():.2f} for even tokens, {tau[1::2].mean():.2f} for odd tokens")
    print("A toy task and one seed: it shows the mechanism and is no evidence for or against the method.")
