"""GPT-2 124M on one CUDA GPU: bf16, compiled, vanilla and SSA, beside transformers and a materialized rule.

Model FLOPs utilization (MFU) counts 6 FLOPs for each parameter and token and 12 L D T for attention (PaLM, arXiv
2204.02311, appendix B), over the peak of dense bf16 on an H100 or H200, 989 TFLOP/s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import models
from benchmarks.measure import Figure, interleaved, ratio, seconds
from benchmarks.models import SSA, Loss, Shape
from benchmarks.settings import Settings
from benchmarks.step import step
from ssa.errors import UserError
from ssa.model.attention_stats import attention_statistics
from ssa.model.transformer import Transformer

GPT2 = Shape(n_layer=12, d_model=768, n_head=12, length=1024, batch=32, vocabulary=50257)
PEAK_FLOPS = 989e12
STEPS = 5  # in each timing
MATERIALIZED_BATCH = 8  # maps of 32 sequences do not fit


def figures(settings: Settings, shape: Shape = GPT2, device: str = "cuda") -> list[Figure]:
    """Tokens per second, MFU, peak memory, kernels, and ratios.  With ``to=FILE`` the profile goes to FILE.trace.json.

    Raises:
        UserError: no CUDA device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("gpu: this benchmark needs a CUDA GPU")
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    found: list[Figure] = []
    cases: dict[str, Callable[[], None]] = {}
    for name, rule in {"vanilla": models.VANILLA, "SSA": SSA}.items():
        model, loss = models.ours(shape, rule)
        cases[name] = _steps(model, loss, shape, device, compiled=True)
        if name == "SSA":
            trained = model
    model, loss = models.transformers_gpt2(shape)
    cases["transformers"] = _steps(model, loss, shape, device)
    for name, case in cases.items():
        began = time.perf_counter()
        case()
        found.append(Figure(f"{name}: first {STEPS} steps, compilation included", time.perf_counter() - began, "s"))
        found += _peak(name, case, device)
    times = interleaved(cases, settings.rounds, warmup=1)
    per_step = {name: [value / STEPS for value in values] for name, values in times.items()}
    for name, values in per_step.items():
        timed = seconds(f"{name}: step, {shape}", values)
        tokens = shape.batch * shape.length / timed.value
        found += [timed, Figure(f"{name}: tokens/s", tokens, "tokens/s")]
        if name != "transformers":
            goal = ">= 0.55" if name == "vanilla" else None
            found.append(Figure(f"{name}: MFU", tokens * _flops_per_token(shape) / PEAK_FLOPS, "", goal=goal))
    found.append(ratio("SSA / vanilla, step", per_step["SSA"], per_step["vanilla"], "<= 1.02"))
    found.append(ratio("transformers / vanilla, step", per_step["transformers"], per_step["vanilla"], ">= 2"))
    found += _materialized(settings, shape, device) + _entropy(settings, trained, shape, device)
    return found + _kernels(settings, cases["SSA"], device)


def _steps(model: nn.Module, loss: Loss, shape: Shape, device: str, compiled: bool = False) -> Callable[[], None]:
    """A function that trains for `STEPS` steps and waits for the last."""
    one = step(model, loss, shape, compiled, device)

    def run() -> None:
        for _ in range(STEPS):
            one()
        _wait(device)

    return run


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _flops_per_token(shape: Shape) -> float:
    model, _ = models.ours(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters()) - shape.length * shape.d_model
    return 6 * parameters + 12 * shape.n_layer * shape.d_model * shape.length


def _peak(name: str, case: Callable[[], None], device: str) -> list[Figure]:
    if device != "cuda":
        return []
    torch.cuda.reset_peak_memory_stats()
    case()
    others = torch.cuda.memory_allocated()  # models and optimizers of all cases
    return [
        Figure(
            f"{name}: peak memory of a step beyond weights", (torch.cuda.max_memory_allocated() - others) / 1e9, "GB"
        )
    ]


def _materialized(settings: Settings, shape: Shape, device: str) -> list[Figure]:
    """The position rule on T x T maps in Python against SSA, both eager, at a batch that fits."""
    small = Shape(**{**vars(shape), "batch": min(shape.batch, MATERIALIZED_BATCH)})
    cases = {
        "ours": _steps(*models.ours(small, SSA), small, device),
        "materialized": _steps(*models.plain(small, materialized=True), small, device),
    }
    times = interleaved(cases, min(settings.rounds, 5), warmup=1)
    return [ratio(f"materialized position rule / our SSA, eager, {small}", times["materialized"], times["ours"])]


def _entropy(settings: Settings, model: nn.Module, shape: Shape, device: str) -> list[Figure]:
    """Attention entropy of 8 sequences, as at a validation."""
    assert isinstance(model, Transformer)
    ids = shape.tokens()[0][:8].to(device)

    def run() -> None:
        with torch.compiler.set_stance("force_eager"):
            attention_statistics(model, ids)

    return [seconds("attention statistics of 8 sequences", interleaved({"": run}, min(settings.rounds, 5))[""])]


def _kernels(settings: Settings, case: Callable[[], None], device: str) -> list[Figure]:
    """Shares of a step's time by kernel, the attention kernel among them; the trace is kept."""
    activities = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        case()
    if settings.to:
        profiled.export_chrome_trace(f"{settings.to}.trace.json")
    events = [
        (event.key, event.self_device_time_total or event.self_cpu_time_total) for event in profiled.key_averages()
    ]
    total = sum(value for _, value in events)
    largest = sorted(events, key=lambda event: -event[1])[:10]
    attention = [
        event for event in events if any(word in event[0].lower() for word in ("flash", "fmha", "sdpa", "cudnn"))
    ]
    if settings.to:
        Path(f"{settings.to}.kernels.json").write_text(json.dumps(dict(events), indent=2))
    return [
        Figure(f"share of kernel {name[:60]}", value / total, "") for name, value in dict(largest + attention).items()
    ]
