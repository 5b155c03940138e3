"""SmolLM2-135M, a real Llama: the same logits, text and loss as in transformers.

SSA_SMOLLM2 names the folder that holds it.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssa.command_line.compose import configured
from ssa.model.generation import generate
from ssa.model.transformer import Transformer
from ssa.pretrained.load import from_pretrained
from ssa.text.token_blocks import EvaluationBatches
from ssa.text.token_cache import prepare

FOLDER = os.environ.get("SSA_SMOLLM2", "")
pytestmark = [pytest.mark.hub, pytest.mark.skipif(not FOLDER, reason="SSA_SMOLLM2 is not set")]
WINDOWS, LENGTH = 2, 512


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
def test_the_same_logits_and_loss_on_wikitext(ours: Transformer, theirs: Any) -> None:
    config = configured("model=llama", f"init_from={FOLDER}", "data=wikitext", f"data.block_size={LENGTH}")
    losses = []
    for inputs, targets in islice(EvaluationBatches(prepare(config.data).split("test"), LENGTH, 1), WINDOWS):
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
    new = generate(ours, prompt.tolist(), 20, greedy=True)
    assert [prompt[0].tolist() + new[0]] == wanted.tolist()
    assert "Paris" in tokenizer.decode(new[0])
