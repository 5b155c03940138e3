"""The transformer against itself at the identity, and against attention written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssa.model.attention import AttentionMetadata, CausalSelfAttention, causal_mask
from ssa.model.config import Terms
from ssa.model.temperature_rules import Tokens
from ssa.model.transformer import Transformer

VOCAB = 61
BOTH = Terms(token="shared", position="log")
OWN_LAYER = Terms(token="mlp")
BACKBONES = {
    "gpt2": {},
    "pythia": {"positions": "rotary", "rotary_fraction": 0.5, "parallel_residual": True, "tie_embeddings": False},
    "llama": {"positions": "rotary", "norm": "rms", "activation": "silu", "gated_mlp": True, "n_kv_head": 1},
}


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def to_identity(model: Transformer) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".temperature." in name:
                parameter.fill_(-math.inf if name.endswith("alpha") else 0.0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_at_the_identity_ssa_is_vanilla_bit_for_bit(model_config, backbone: str) -> None:
    vanilla = Transformer(model_config(**BACKBONES[backbone]), VOCAB, seed=5)
    ssa = Transformer(model_config(query=BOTH, key=BOTH, value=BOTH, **BACKBONES[backbone]), VOCAB, seed=5)
    to_identity(ssa)
    assert torch.equal(vanilla(ids(2, 40)), ssa(ids(2, 40)))


@pytest.mark.parametrize("rule", [{"ssa": True}, {"query": OWN_LAYER}, {"output": Terms(token="gate")}])
def test_variants_share_the_backbone_at_equal_seed(model_config, rule: dict) -> None:
    vanilla = Transformer(model_config(), VOCAB, seed=5).state_dict()
    ssa = Transformer(model_config(**rule), VOCAB, seed=5).state_dict()
    assert set(ssa) > set(vanilla)
    assert all(torch.equal(tensor, ssa[name]) for name, tensor in vanilla.items())
    other = Transformer(model_config(), VOCAB, seed=6).state_dict()
    assert not torch.equal(vanilla["token_embedding.weight"], other["token_embedding.weight"])


def causal(length: int) -> torch.Tensor:
    return torch.ones(length, length).tril().bool()


def attention_of(config, seed: int = 1) -> CausalSelfAttention:
    attention = CausalSelfAttention(config)
    torch.manual_seed(seed)
    for parameter in attention.temperature.parameters():
        torch.nn.init.normal_(parameter)
    return attention


@pytest.mark.parametrize("n_kv_head", [1, 2, 4])
@pytest.mark.parametrize("projection", ["query", "key", "value", "output"])
def test_attention_equals_the_score_matrix_written_out(model_config, projection: str, n_kv_head: int) -> None:
    attention = attention_of(model_config(n_head=4, n_kv_head=n_kv_head, d_model=32, **{projection: BOTH}))
    x, n = torch.randn(2, 9, 32), torch.arange(1, 10)
    metadata = AttentionMetadata(n, None, None, None)
    q, k, v = attention.qkv(x).split([32, 8 * n_kv_head, 8 * n_kv_head], dim=-1)
    q, k, v = (part.unflatten(-1, (-1, 8)).transpose(1, 2) for part in (q, k, v))  # (2, heads, 9, 8)

    def tau(features: torch.Tensor) -> torch.Tensor:
        return attention.temperature[projection](features.transpose(1, 2), Tokens(x, n)).transpose(1, 2)

    def for_all_heads(part: torch.Tensor) -> torch.Tensor:
        return torch.stack([part[:, head * n_kv_head // 4] for head in range(4)], dim=1)

    scores = q @ for_all_heads(k).transpose(-1, -2) / math.sqrt(8)
    if projection == "query":
        scores = tau(q) * scores
    if projection == "key":
        scores = scores * for_all_heads(tau(k)).transpose(-1, -2)
    maps = scores.masked_fill(~causal(9), -math.inf).softmax(-1)
    mixed = maps @ for_all_heads(tau(v) * v if projection == "value" else v)
    if projection == "output":
        mixed = tau(mixed) * mixed
    want = attention.out(mixed.transpose(1, 2).reshape(2, 9, 32))
    torch.testing.assert_close(attention(x, metadata), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", [-1.0, 0.3, 1.5, 2.0])
@pytest.mark.parametrize("form", ["released", "released_linear"])
def test_released_equals_the_authors_formula_on_the_logits(model_config, form: str, beta: float) -> None:
    attention = attention_of(model_config(query=Terms(position=form), per="layer"))
    with torch.no_grad():
        attention.temperature["query"].terms["position"].beta.fill_(beta)
    x, n = torch.randn(2, 30, 16), torch.arange(1.0, 31.0)
    q, k, v = (part.view(2, 30, 2, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    factor = math.exp(-math.exp(beta)) if form == "released" else beta
    logits = q @ k.transpose(-1, -2) / math.sqrt(8) * (1 + factor * n.log())[:, None]  # a factor a row
    mixed = logits.masked_fill(~causal(30), -math.inf).softmax(-1) @ v
    want = attention.out(mixed.transpose(1, 2).reshape(2, 30, 16))
    got = attention(x, AttentionMetadata(n.long(), None, None, None))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_mask_is_what_visible_says() -> None:
    mask = causal_mask(torch.tensor([[1, 2, 1, 2, 3]]), 5)[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert torch.equal(causal_mask(torch.tensor([4, 5]), 5)[0, 0], causal(5)[3:])


def test_losses_are_the_negative_log_likelihoods(model_config) -> None:
    model = Transformer(model_config(ssa=True), VOCAB)
    inputs, targets = ids(2, 10), ids(2, 10, seed=1)
    want = -F.log_softmax(model(inputs), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(model(inputs, targets), want)


def test_initialization_is_gpt2s(model_config) -> None:
    model = Transformer(model_config(n_layer=4, d_model=128, n_head=4), 2000)
    block = model.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.03)
    assert block.mlp.up.bias.abs().max() == 0
    assert model.head.weight is model.token_embedding.weight


def test_compiled_checkpoints_load_eager_and_back(model_config) -> None:
    eager, compiled = Transformer(model_config(ssa=True), VOCAB), Transformer(model_config(ssa=True), VOCAB, seed=1)
    compiled.compile()
    compiled.load_state_dict(eager.state_dict())
    eager.load_state_dict(compiled.state_dict())
