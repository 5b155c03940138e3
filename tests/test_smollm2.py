"""SmolLM2-135M, a real Llama: the same logits, text and loss as in transformers.

SSA_SMOLLM2 names the folder that holds it.
"""

from __future__ import annotations

import os
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssa.pretrained.load import from_pretrained
from ssa.transformer import Transformer

FOLDER = os.environ.get("SSA_SMOLLM2", "")
pytestmark = [pytest.mark.hub, pytest.mark.skipif(not FOLDER, reason="SSA_SMOLLM2 is not set")]
WINDOWS, LENGTH = 4, 1024


@pytest.fixture(scope="module")
def ours() -> Transformer:
    return from_pretrained(FOLDER).eval()


@pytest.fixture(scope="module")
def theirs() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@torch.no_grad()
def test_the_same_logits_and_loss(ours: Transformer, theirs: Any, tokenizer: Any) -> None:
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(tokenizer(text)["input_ids"][: WINDOWS * LENGTH + 1])
    losses = []
    for start in range(0, WINDOWS * LENGTH, LENGTH):
        inputs, targets = ids[start : start + LENGTH][None], ids[start + 1 : start + LENGTH + 1][None]
        found, wanted = ours(inputs), theirs(inputs).logits
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        losses.append([F.cross_entropy(logits[0], targets[0]).item() for logits in (found, wanted)])
    mean = torch.tensor(losses).mean(0)
    assert mean[0].item() == pytest.approx(mean[1].item(), rel=1e-3)
    assert mean[0].item() < 4  # it has learned something


@torch.no_grad()
def test_the_same_continuation(ours: Transformer, theirs: Any, tokenizer: Any) -> None:
    prompt = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    wanted = theirs.generate(prompt, do_sample=False, max_new_tokens=20, min_new_tokens=20)
    tokens = prompt
    for _ in range(20):
        tokens = torch.cat((tokens, ours(tokens)[:, -1:].argmax(-1)), dim=1)
    assert tokens.tolist() == wanted.tolist()
    assert "Paris" in tokenizer.decode(tokens[0])
