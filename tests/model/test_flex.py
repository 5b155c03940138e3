"""FlexAttention within documents against the dense mask.

On the CPU, torch computes its backward pass for reference but refuses it to users; here the refusal is lifted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention

from ssa.model.attention import causal_mask
from ssa.model.flex import block_mask
from ssa.model.kv_cache import KVCache
from ssa.model.transformer import Transformer

VOCAB, LENGTH = 61, 300  # more than two blocks of the mask, the last not full
LLAMA = {"positions": "rotary", "norm": "rms", "activation": "silu", "gated_mlp": True, "n_kv_head": 1}
MODELS: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": LLAMA, "ssa": {"ssa": True}}
IDS = torch.randint(0, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.stack([torch.arange(LENGTH) % n + 1 for n in (LENGTH, 7, 140, 1)])


@pytest.fixture
def eager() -> Iterator[None]:
    """FlexAttention as it is written, without kernels."""
    with torch.compiler.set_stance("force_eager"):
        yield


def models(model_config, name: str) -> list[Transformer]:
    """Two equal models in training, the second with FlexAttention."""
    config = model_config(d_model=32, max_positions=LENGTH, **MODELS[name])
    dense, flex = (Transformer(config, VOCAB) for _ in range(2))
    flex.flex_attention = True
    return [dense, flex]


@pytest.mark.usefixtures("eager")
def test_the_mask_is_the_dense_one() -> None:
    mask = block_mask(DOCUMENTS)
    dense = flex_attention.create_mask(mask.mask_mod, 4, 1, LENGTH, LENGTH, device="cpu")
    assert torch.equal(dense, causal_mask(DOCUMENTS, LENGTH))
    blocks = mask.to_dense()[:, 0].tolist()
    assert blocks[0] == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert blocks[3] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]], "documents in other blocks are skipped"


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_the_dense_mask(model_config, monkeypatch, name, checkpoint: bool) -> None:
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    dense, flex = models(model_config, name)
    flex.checkpoint_activations = checkpoint
    got = flex(IDS, IDS, visible_keys=DOCUMENTS, reduction="mean")
    got.backward()
    monkeypatch.undo()
    want = dense(IDS, IDS, visible_keys=DOCUMENTS, reduction="mean")
    want.backward()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    for one, other in zip(flex.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_only_training_uses_it(model_config, monkeypatch) -> None:
    monkeypatch.setattr("ssa.model.transformer.block_mask", None)
    dense, flex = models(model_config, "ssa")
    assert torch.equal(flex(IDS), dense(IDS)), "the kernel's causal mask"
    assert torch.equal(*(model(IDS, visible_keys=DOCUMENTS, cache=KVCache.empty(2)) for model in (dense, flex)))
    assert torch.equal(*(model.eval()(IDS, visible_keys=DOCUMENTS) for model in (dense, flex)))


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_compiled_it_gives_the_same_losses(model_config, name: str, blocks: bool) -> None:
    dense, flex = models(model_config, name)
    torch._dynamo.reset()
    for block in flex.blocks if blocks else ():
        block.compile()
    with torch.no_grad():
        for shift in range(3):  # each batch has a mask of its own
            losses = [model(IDS, IDS, visible_keys=DOCUMENTS.roll(shift, dims=0)) for model in (dense, flex)]
            torch.testing.assert_close(*losses)
