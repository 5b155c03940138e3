"""The plan of a run on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from ssa.config import Config
from ssa.planning.disk import checkpoints
from ssa.planning.flops import training_flops
from ssa.planning.hardware import planned_device, planned_speed
from ssa.planning.memory import DeviceShare, memory_parts, step_bytes
from ssa.planning.parameters import count_parameters, vocabulary
from ssa.planning.strategy import MARGIN, choose_strategy
from ssa.progress import counted, duration
from ssa.text.token_cache import find_cached

Row = tuple[str, str, str]  # what, how much, and a remark


def show(config: Config, console: Console | None = None) -> None:
    """Print parameters, memory, compute, time and disk of a run.  Nothing is run, downloaded or written."""
    console = console or Console(highlight=False, soft_wrap=True)
    table = Table("", "", "", box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0))
    table.columns[1].justify = "right"
    for number, section in enumerate(_sections(config)):
        if number:
            table.add_section()
        for row in section:
            table.add_row(*row)
    console.print(f"plan of {config.run_id}: nothing is run", markup=False)
    console.print(table, markup=False)


def _sections(config: Config) -> Iterator[list[Row]]:
    vocab = vocabulary(config)
    parameters = count_parameters(config.model, vocab.size, config.optim.train == "temperature")
    yield [
        ("parameters", f"{parameters.total:,}", ""),
        ("  non-embedding", f"{parameters.non_embedding:,}", ""),
        ("  temperatures", f"{parameters.temperature:,}", config.model.temperature.name),
        ("  trained", f"{parameters.trained:,}", f"optim.train={config.optim.train}"),
        ("vocabulary", f"{vocab.size:,}", vocab.source),
    ]
    device = planned_device(config)
    share = DeviceShare.of(config, device.kind)
    strategy = choose_strategy(config, vocab.size, device)
    step = step_bytes(config, vocab.size, device, share)
    files = checkpoints(config, parameters)
    parts = memory_parts(parameters, step, device, share.devices, strategy.name, files.best, share.accumulate > 1)
    shape = f"{share.micro_batch} x {config.data.block_size} tokens, {device.precision}"
    recomputed = ", recomputed" if config.trainer.checkpoint_activations else ""
    remarks = {
        "activations": f"{shape}{recomputed}",
        "allocator": "freed space that the heap cannot use again",
        "best weights": "mapped from their file at the end, while the heap stays",
        "base": "interpreter, libraries" if device.kind != "cuda" else "CUDA context, assumed",
    }
    memory = [(f"  {name}", _gb(size), remarks.get(name, "")) for name, size in parts.items() if size]
    total = sum(parts.values())
    yield [("memory per device", _gb(total), _fits(total, device.memory, device.name)), *memory]
    tokens, flops, speed = config.tokens, training_flops(config, parameters), planned_speed(config, device)
    compute = [
        ("devices", f"{share.devices:,}", f"{strategy.name}: {strategy.reason}" if share.devices > 1 else device.name),
        (
            "  sequences per step",
            f"{share.micro_batch * share.accumulate}",
            f"on each device, {share.micro_batch} at a time",
        ),
        ("FLOPs per token", f"{flops.total / tokens:.3g}", "forward and backward"),
        ("  forward", f"{flops.forward / tokens:.3g}", f"{flops.attention / flops.forward:.0%} of it in attention"),
        ("tokens", f"{tokens:,}", f"{counted(config.trainer.steps, 'steps')}, without evaluation"),
        ("FLOPs", f"{flops.total:.3g}", ""),
    ]
    if speed.value is None:
        compute.append(("time", "–", speed.how))
    else:
        seconds = flops.total / speed.value / share.devices
        compute.append(("time", duration(seconds), f"{speed.value / 1e12:,.3g} TFLOP/s: {speed.how}"))
        compute.append(("  device-hours", f"{seconds * share.devices / 3600:,.3g}", ""))
    yield compute
    cached = find_cached(config.data)
    yield [
        ("disk: tokens", _gb(cached.bytes), f"cached; {tokens / cached.train:,.2f} epochs")
        if cached
        else ("disk: tokens", "–", "known once the text is tokenized"),
        ("  checkpoints", _gb(files.training), "while training, at most"),
        ("", _gb(files.finished), "when finished"),
    ]


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e7 else f"{size / 1e6:,.2f} MB"


def _fits(total: int, memory: int | None, name: str) -> str:
    if memory is None:
        return "plan.memory=80GB compares it with a device"
    state = "fits" if total <= MARGIN * memory else "barely fits" if total <= memory else "DOES NOT FIT"
    return f"{state}: {total / memory:.0%} of {memory / 1e9:,.0f} GB ({name})"
