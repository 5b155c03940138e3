"""The single-file SSA attention equals the package's: start values, forward and backward."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import programs
import pytest
import torch
from conftest import ROOT
from torch import nn

from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer

PATH = ROOT / "ssa_attention.py"
HEADS, D_MODEL, TOKENS = 4, 32, 13


@pytest.fixture(scope="module")
def single_file() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ssa_attention", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(model_config: Callable[..., ModelConfig]) -> Callable[[bool], Transformer]:
    def make(ssa: bool) -> Transformer:
        config = model_config(ssa=ssa, n_layer=1, n_head=HEADS, d_model=D_MODEL)
        return Transformer(config, vocab_size=11, seed=0).double()

    return make


def metadata(model: Transformer) -> Any:
    """The attention metadata of a batch of `TOKENS` tokens, as the model passes it to its layers."""
    seen: list[Any] = []
    with model.blocks[0].attention.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1])):
        model(torch.zeros(1, TOKENS, dtype=torch.long))
    return seen[0]


def pairs(theirs: nn.Module, ours: Any) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of the package's layer, each with its counterpart in the single file."""
    for name in ("qkv", "out"):
        yield from zip(getattr(theirs, name).parameters(), getattr(ours, name).parameters(), strict=True)
    for projection, temperature in theirs.temperature.items():
        own = getattr(ours, f"{projection}_temperature")
        for parameter in temperature.parameters():
            yield parameter, own.w if parameter.ndim == 2 else own.alpha


@pytest.mark.parametrize("ssa", [True, False], ids=["ssa", "vanilla"])
def test_outputs_and_gradients_are_equal(package: Any, single_file: ModuleType, ssa: bool) -> None:
    torch.manual_seed(1)
    model = package(ssa)
    kind = single_file.SelectiveSelfAttention if ssa else single_file.CausalSelfAttention
    theirs, ours = model.blocks[0].attention, kind(D_MODEL, HEADS).double()
    both = list(pairs(theirs, ours))
    assert len(both) == len(list(theirs.parameters())) == len(list(ours.parameters()))
    for package_parameter, parameter in both:
        nn.init.normal_(package_parameter, std=0.5)
        parameter.data.copy_(package_parameter)

    x = torch.randn(3, TOKENS, D_MODEL, dtype=torch.float64)
    upstream = torch.randn_like(x)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [theirs(inputs[0], metadata(model)), ours(inputs[1])]
    for output in outputs:
        output.backward(upstream)
    exact = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(outputs[1], outputs[0], **exact)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **exact)
    for package_parameter, parameter in both:
        assert package_parameter.grad.abs().max() > 0
        torch.testing.assert_close(parameter.grad, package_parameter.grad, **exact)


def test_temperatures_start_where_the_package_starts(package: Any, single_file: ModuleType) -> None:
    theirs, ours = package(True).blocks[0].attention, single_file.SelectiveSelfAttention(D_MODEL, HEADS)
    temperatures = list(pairs(theirs, ours))[4:]
    assert len(temperatures) == 4
    for package_parameter, parameter in temperatures:
        assert torch.equal(parameter.double(), package_parameter)


def test_the_example_shows_what_it_claims() -> None:
    with programs.start(str(PATH), cwd=ROOT) as process:
        assert process.ended() == 0, process.printed
    vanilla, ssa, own, past = map(float, re.findall(r"\d+\.\d+", process.out))
    assert vanilla > 0.1 > 10 * ssa
    assert own > 1 > past


def test_it_needs_torch_alone_and_nothing_imports_it() -> None:
    assert set(re.findall(r"^(?:import|from) (\w+)", PATH.read_text(), re.MULTILINE)) == {"torch"}
    sources = [
        *ROOT.glob("*.py"),
        *(path for room in ("ssa", "experiments", "sweeps") for path in (ROOT / room).rglob("*.py")),
    ]
    assert not [
        path for path in sources if re.search(r"^\s*(import|from) ssa_attention", path.read_text(), re.MULTILINE)
    ]
