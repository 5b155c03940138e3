"""Resolution of `auto`, and one-line errors for what is not available."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ssa import device
from ssa.errors import UserError

CPU = torch.device("cpu")


def test_auto_is_an_available_device() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert device.resolve_device("auto").type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_an_unavailable_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.device=cuda: not available .* valid here: auto"):
        device.resolve_device("cuda")


def test_explicit_precision_is_kept() -> None:
    assert device.resolve_precision("32-true", CPU) == "32-true"
    assert device.resolve_precision("bf16-mixed", CPU) == "bf16-mixed"
    assert device.resolve_precision("auto", torch.device("mps")) == "32-true"


def test_auto_compiles_runs_that_are_long_enough() -> None:
    assert device.resolve_compile("auto", torch.device("cuda"), 1e17)
    assert not device.resolve_compile("auto", torch.device("cuda"), 1e15)
    assert not device.resolve_compile("auto", CPU, 1e30)
    assert device.resolve_compile(True, CPU, 0)
    assert not device.resolve_compile(False, CPU, 1e30)


def test_waiting_threads_do_not_spin_for_long() -> None:
    code = "import ssa, os; print(os.environ.get('GOMP_SPINCOUNT'))"

    def printed(**settings: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | settings
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout

    assert printed().strip() == "700"
    assert printed(GOMP_SPINCOUNT="5").strip() == "5"
    assert printed(OMP_WAIT_POLICY="ACTIVE").strip() == "None"


def test_the_backend_reported_is_the_one_that_runs(smoke) -> None:
    config = smoke()
    with torch.profiler.profile() as profile:
        query = torch.randn(2, 2, 8, 32)
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
    ran_flash = any("flash_attention_for_cpu" in event.key for event in profile.key_averages())
    named = device.attention_backend(config.model, config.trainer, 8, CPU)
    assert (named == "flash") == ran_flash
    math = config.trainer.model_copy(update={"attention_backend": "math"})
    assert device.attention_backend(config.model, math, 8, CPU) == "math"


@pytest.mark.parametrize("backend", ["cudnn", "efficient"])
def test_an_unsupported_backend_is_refused(smoke, backend: str) -> None:
    config = smoke(f"trainer.attention_backend={backend}")
    with pytest.raises(
        UserError, match=f"trainer.attention_backend={backend}: not supported here .* auto and math always are"
    ):
        device.attention_backend(config.model, config.trainer, 8, CPU)


def test_documents_on_cuda_run_on_flex_attention(smoke) -> None:
    cuda, config = torch.device("cuda"), smoke("data.document_mask=true")
    assert device.attention_backend(config.model, config.trainer, 64, cuda, masked=True) == "flex"
    assert device.attention_backend(config.model, config.trainer, 64, CPU, masked=True) in device.BACKENDS


def test_vanilla_and_ssa_run_on_the_same_backend(smoke) -> None:
    backends = {device.attention_backend(c.model, c.trainer, 64, CPU) for c in (smoke(), smoke("model=gpt2"))}
    assert len(backends) == 1


def test_peak_memory_is_of_one_job() -> None:
    block = torch.ones(100_000_000)  # 400 MB
    high = device.peak_memory_bytes(CPU)
    del block
    device.reset_peak_memory(CPU)
    low = device.peak_memory_bytes(CPU)
    assert high > 400_000_000
    if device.Path("/proc/self/clear_refs").exists():
        assert low < high - 300_000_000
