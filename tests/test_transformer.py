"""The transformer against `transformers`, against itself at the identity, and against attention written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ssa.attention import CausalSelfAttention
from ssa.model_config import ScalarTemperature
from ssa.transformer import Transformer

VOCAB = 61
BOTH = ScalarTemperature(token="shared", position="log")


def ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def to_identity(model: Transformer) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".temperature." in name:
                parameter.fill_(-math.inf if name.endswith("alpha") else 0.0)


def stir(model: Transformer, seed: int = 3) -> Transformer:
    """Temperatures far from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".temperature." in name:
                parameter.normal_(0, 1, generator=generator)
    return model


@pytest.mark.parametrize(("n_layer", "n_head", "width", "length"), [(1, 1, 8, 1), (2, 2, 16, 33), (3, 4, 32, 64)])
def test_gpt2_equals_transformers(model_config, n_layer: int, n_head: int, width: int, length: int) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": width, "n_positions": 64, "vocab_size": VOCAB}
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # norms and biases off their start values too
    ours = Transformer(model_config(n_layer=n_layer, n_head=n_head, width=width), VOCAB)
    ours.load_state_dict(from_gpt2(theirs.state_dict(), n_layer))
    inputs = ids(2, length)
    torch.testing.assert_close(ours(inputs), theirs(inputs).logits, rtol=0, atol=1e-4)


def from_gpt2(state: dict[str, torch.Tensor], n_layer: int) -> dict[str, torch.Tensor]:
    """Our names for their tensors; their linear layers are stored transposed."""
    names = {"transformer.wte": "token_embedding", "transformer.wpe": "position_embedding"}
    names |= {"transformer.ln_f": "final_norm", "lm_head": "head"}
    for i in range(n_layer):
        block = {"ln_1": "attention_norm", "attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out"}
        block |= {"ln_2": "mlp_norm", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}
        names |= {f"transformer.h.{i}.{old}": f"blocks.{i}.{new}" for old, new in block.items()}
    renamed = {}
    for name, tensor in state.items():
        module, kind = name.rsplit(".", 1)
        is_matrix = ".c_" in module and kind == "weight"
        renamed[f"{names[module]}.{kind}"] = tensor.T if is_matrix else tensor
    return renamed


def test_at_the_identity_ssa_is_vanilla_bit_for_bit(model_config) -> None:
    vanilla = Transformer(model_config(), VOCAB, seed=5)
    ssa = Transformer(model_config(query=BOTH, key=BOTH, value=BOTH), VOCAB, seed=5)
    to_identity(ssa)
    assert torch.equal(vanilla(ids(2, 40)), ssa(ids(2, 40)))


def test_variants_share_the_backbone_at_equal_seed(model_config) -> None:
    vanilla = Transformer(model_config(), VOCAB, seed=5).state_dict()
    ssa = Transformer(model_config(ssa=True), VOCAB, seed=5).state_dict()
    assert set(ssa) > set(vanilla)
    assert all(torch.equal(tensor, ssa[name]) for name, tensor in vanilla.items())
    other = Transformer(model_config(), VOCAB, seed=6).state_dict()
    assert not torch.equal(vanilla["token_embedding.weight"], other["token_embedding.weight"])


@pytest.mark.parametrize("projection", ["query", "key", "value"])
def test_attention_equals_the_score_matrix_written_out(model_config, projection: str) -> None:
    config = model_config(**{projection: BOTH})
    attention = CausalSelfAttention(config)
    torch.manual_seed(1)
    for parameter in attention.temperature.parameters():
        torch.nn.init.normal_(parameter)
    x, n = torch.randn(2, 9, 16), torch.arange(1, 10)
    q, k, v = (part.view(2, 9, 2, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    tau = attention.temperature[projection]({"query": q, "key": k, "value": v}[projection], n)  # (2, H, 9, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(8)
    if projection == "query":
        scores = tau * scores
    if projection == "key":
        scores = scores * tau.transpose(-1, -2)
    maps = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -math.inf).softmax(-1)
    mixed = maps @ (tau * v if projection == "value" else v)
    want = attention.out(mixed.transpose(1, 2).reshape(2, 9, 16))
    torch.testing.assert_close(attention(x, n), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("projection", ["query", "key", "value"])
def test_temperatures_change_the_output(model_config, projection: str) -> None:
    model = Transformer(model_config(**{projection: BOTH}), VOCAB)
    before = model(ids(1, 12))
    assert not torch.allclose(stir(model)(ids(1, 12)), before)


def test_no_token_sees_a_later_one(model_config) -> None:
    model = stir(Transformer(model_config(query=BOTH, key=BOTH, value=BOTH), VOCAB))
    changed = ids(1, 20)
    changed[0, 12] = (changed[0, 12] + 1) % VOCAB
    before, after = model(ids(1, 20)), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_losses_are_the_negative_log_likelihoods(model_config) -> None:
    model = Transformer(model_config(ssa=True), VOCAB)
    inputs, targets = ids(2, 10), ids(2, 10, seed=1)
    want = -F.log_softmax(model(inputs), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(model(inputs, targets), want)


def test_initialisation_is_gpt2s(model_config) -> None:
    model = Transformer(model_config(n_layer=4, width=128, n_head=4), 2000)
    block = model.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.02)
    assert block.attention.out.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.03)
    assert block.mlp.up.bias.abs().max() == 0
    assert model.head.weight is model.token_embedding.weight


def test_124m_counts_and_the_share_of_temperatures(model_config) -> None:
    shape = {"n_layer": 12, "n_head": 12, "width": 768, "max_positions": 1024}
    with torch.device("meta"):  # shapes alone
        config = model_config(ssa=True, **shape)
        temperatures = 12 * 2 * (12 * 64 + 12)
    model = Transformer(config, 50257)
    count = model.count_parameters()
    assert count["total"] - count["temperature"] == 124_439_808  # GPT-2's published size
    assert count["temperature"] == temperatures
    assert count["temperature"] / count["total"] < 0.0002


def test_compiled_checkpoints_load_eager_and_back(model_config) -> None:
    eager, compiled = Transformer(model_config(ssa=True), VOCAB), Transformer(model_config(ssa=True), VOCAB, seed=1)
    compiled.compile()
    compiled.load_state_dict(eager.state_dict())
    eager.load_state_dict(compiled.state_dict())


def test_dropout_acts_in_training_only(model_config) -> None:
    model = Transformer(model_config(ssa=True, dropout=0.5), VOCAB)
    assert not torch.equal(model(ids(1, 8)), model(ids(1, 8)))
    model.eval()
    assert torch.equal(model(ids(1, 8)), model(ids(1, 8)))
