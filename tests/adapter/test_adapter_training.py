"""Adapted models where people train and evaluate them: the examples of docs/adapter.md, processes, lm-eval."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from conftest import ROOT
from judgment import move
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import ssa
from ssa.adapter.files import WEIGHTS

pytestmark = pytest.mark.slow
EXAMPLES = dict(
    re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", (ROOT / "docs" / "adapter.md").read_text(), re.DOTALL)
)
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a tokenizer of bytes, and a text beside it."""
    folder = tmp_path_factory.mktemp("adapter") / "base"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate([END, *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.save_pretrained(folder)
    config = tiny_model("llama").config
    config.vocab_size, config.eos_token_id, config.pad_token_id, config.max_position_embeddings = 257, 0, 0, 512
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder.parent / "my.txt").write_text("".join(f"The garden has {n} trees and a wall.\n" for n in range(60)))
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_documentation(name: str, base: Path) -> None:
    code = EXAMPLES[name]
    assert len(code.splitlines()) < 30
    code = code.replace("HuggingFaceTB/SmolLM2-135M", str(base))
    code = code.replace('report_to="none"', 'report_to="none", use_cpu=True, bf16=False')
    (base.parent / f"example_{name}.py").write_text(code)
    command = [sys.executable, f"example_{name}.py"]
    done = subprocess.run(command, cwd=base.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = base.parent / ("my-adapters" if name == "loop" else "my-temperatures")
    start = ssa.adapt(AutoModelForCausalLM.from_pretrained(base)).state_dict()
    saved = load_file(folder / WEIGHTS)
    assert not any(torch.equal(start[key], tensor) for key, tensor in saved.items()), "all are trained"


def test_the_three_examples_are_there() -> None:
    assert set(EXAMPLES) == {"trainer", "trl", "loop"}


def test_several_processes(base: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("sharded_training.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    ways = {"one": [sys.executable], "accelerate": launch, "fsdp": launch}
    saved = {}
    for way, command in ways.items():
        arguments = [*command, script, str(base), way, str(tmp_path / way)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        saved[way] = load_file(tmp_path / way / WEIGHTS)
    for way in ("accelerate", "fsdp"):
        assert saved[way].keys() == saved["one"].keys()
        for name, tensor in saved["one"].items():
            torch.testing.assert_close(saved[way][name], tensor, rtol=1e-4, atol=1e-6)


def test_lm_eval(base: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = ssa.adapt(AutoModelForCausalLM.from_pretrained(base))
    move(model)
    harness = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=2)
    pairs = [("The garden", " has 3 trees"), ("A wall", " and"), ("The garden has", " a wall.")]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    found = [score for score, _ in harness.loglikelihood(requests)]
    for (context, continuation), score in zip(pairs, found, strict=True):
        ids = torch.tensor([tokenizer.encode(context + continuation)])
        start = len(tokenizer.encode(context))
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        expected = sum(logs[place - 1, ids[0, place]].item() for place in range(start, ids.size(1)))
        assert score == pytest.approx(expected, abs=1e-4)
