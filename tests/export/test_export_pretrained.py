"""``export.py init_from=``: a pretrained model with new temperatures, without a training run; and ``dtype=bf16``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from pretrained_folders import ids, write_model
from safetensors.torch import load_file
from torch import Tensor

from ssa.errors import UserError
from ssa.export.base_model import with_temperatures
from ssa.export.folder import Dtype, export_pretrained
from ssa.model.transformer import Transformer
from ssa.pretrained.load import from_pretrained
from ssa.text.tokenization import Tokenizer, train_bpe

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("own_modules")


@pytest.fixture(scope="session")
def definition(small_text: Path) -> str:
    return Tokenizer("bpe-300", train_bpe(iter([small_text.read_text()[:20_000]]), 300)).definition


@pytest.fixture(params=["gpt2", "llama"])
def base(request: pytest.FixtureRequest, tmp_path: Path, definition: str) -> tuple[str, Transformer]:
    """A model without temperatures, as transformers writes it, with a tokenizer."""
    folder = tmp_path / "base"
    model = write_model(folder, request.param)
    (folder / "tokenizer.json").write_text(definition)
    return str(folder), model


def made(base: str, to: Path, rule: str | None, dtype: Dtype = "float32") -> tuple[Path, bool]:
    return export_pretrained(with_temperatures(base, rule), base, to, dtype=dtype)


def load(folder: Path) -> Any:
    own = "auto_map" in json.loads((folder / "config.json").read_text())
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=own, dtype="auto")


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(tokens).logits
    return found


@torch.no_grad()
def test_new_temperatures_start_at_the_pretrained_model(base: tuple[str, Transformer], tmp_path: Path) -> None:
    folder, model = base
    exported, own = made(folder, tmp_path / "exported", "ssa")
    loaded, tokens = load(exported), ids()
    assert own
    assert loaded.model.temperatures()
    torch.testing.assert_close(logits(loaded, tokens), model(tokens), atol=2e-3, rtol=2e-3)
    assert torch.equal(logits(loaded, tokens), from_pretrained(exported).eval()(tokens))
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert (
        tokenizer("The garden").input_ids
        == Tokenizer("x", (exported / "tokenizer.json").read_text()).encode_batch(["The garden"])[0]
    )
    card = (exported / "README.md").read_text()
    assert "(rule `ssa`) on: query, value" in card
    assert "not trained further" in card
    again, _ = made(str(exported), tmp_path / "again", "ssa")  # which keeps the temperatures it has
    assert torch.equal(logits(load(again), tokens), logits(loaded, tokens))


def test_bf16_weights_with_float32_temperatures(base: tuple[str, Transformer], tmp_path: Path) -> None:
    folder, model = base
    exported, _ = made(folder, tmp_path / "exported", "ssa", "bf16")
    stored = load_file(exported / "model.safetensors")
    assert json.loads((exported / "config.json").read_text())["dtype"] == "bfloat16"
    for found in (stored, load(exported).state_dict()):
        precise = {name for name, tensor in found.items() if tensor.dtype == torch.float32}
        assert precise == {name for name in found if ".temperature." in name} != set()
        assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.bfloat16}
    assert torch.equal(stored["model.token_embedding.weight"], model.token_embedding.weight.bfloat16())
    assert torch.equal(
        from_pretrained(exported).token_embedding.weight, model.token_embedding.weight.bfloat16().float()
    )


def test_without_temperatures_the_stock_class_is_written(base: tuple[str, Transformer], tmp_path: Path) -> None:
    folder, _ = base
    for rule in (None, "none"):
        exported, own = made(folder, tmp_path / f"exported-{rule}", rule, "bf16")
        model = load(exported)
        assert not own
        assert type(model).__module__.startswith("transformers.models")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_rules_that_cannot_be_added(tmp_path: Path) -> None:
    write_model(tmp_path / "base", "gpt2")
    folder = str(tmp_path / "base")
    for rule, message in (
        ("tokn", r"model/temperature=tokn: not one of the rules, did you mean token\?; valid: constant, "),
        ("frequency", r"model/temperature=frequency: reads token counts of a training text.*; valid: constant, gate, "),
    ):
        with pytest.raises(UserError, match=message):
            with_temperatures(folder, rule)


def refused(cwd: Path, *arguments: str) -> str:
    """The only line of a refusal, which comes before torch is imported."""
    done = programs.launch("export.py", *arguments, cwd=cwd)
    assert (done.code, done.out, done.heavy, done.err.count("\n")) == (2, "", set(), 1), done
    return str(done.err)


def test_from_the_command_line(tmp_path: Path, definition: str) -> None:
    base, to = tmp_path / "base", "to=exported"
    write_model(base, "gpt2")
    (base / "tokenizer.json").write_text(definition)
    one = "error: run, init_from: set exactly one: run=RUN_FOLDER, or init_from=HUB_ID_OR_FOLDER\n"
    assert refused(tmp_path, to) == refused(tmp_path, to, "run=a", f"init_from={base}") == one
    assert "a run has its own temperatures" in refused(tmp_path, to, "run=a", "model/temperature=ssa")
    assert "did you mean ssa?" in refused(tmp_path, to, f"init_from={base}", "model/temperature=sssa")
    with programs.start(
        "export.py", f"init_from={base}", "model/temperature=ssa", "dtype=bf16", to, cwd=tmp_path
    ) as done:
        assert done.ended() == 0, done.err
    assert "trust_remote_code=True" in done.out
    assert "has not finished" not in done.out
    assert from_pretrained(tmp_path / "exported").temperatures()
