"""Parameters, FLOPs, disk, devices, memory of several devices and the choice of a strategy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssa.command_line.compose import configured
from ssa.config import Gpu
from ssa.device import attention_kernels
from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.planning import hardware, memory
from ssa.planning.disk import checkpoints
from ssa.planning.flops import flops_per_token, training_flops
from ssa.planning.hardware import GPUS, Device, planned_device, planned_speed
from ssa.planning.memory import DeviceShare, memory_parts
from ssa.planning.parameters import count_parameters, vocabulary
from ssa.planning.strategy import choose_strategy
from ssa.planning.traced_step import StepBytes

V = 300
STEP = StepBytes(activations=10_000, loss=1_000, backward=0, small=8_000, small_in_graph=9_000)


def gpu(gigabytes: float) -> Device:
    return Device("GPU", "cuda", "bf16-mixed", int(gigabytes * 1e9), base=0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("alone", [True, False])
def test_parameters_are_those_of_the_model(model_config: Callable[..., ModelConfig], tied: bool, alone: bool) -> None:
    config = model_config(ssa=True, n_layer=5, tie_embeddings=tied)
    found, model = count_parameters(config, V, alone), Transformer(config, V)
    if alone:
        model.freeze_backbone()
    counts = model.count_parameters()
    assert {name: getattr(found, name) for name in counts} == counts
    assert found.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.root == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    assert found.root_trained == (0 if alone else found.root)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_flops_are_those_that_torch_counts(model_config: Callable[..., ModelConfig], checkpointed: bool) -> None:
    """torch counts all keys of a causal mask, half of which are visible."""
    config, length = model_config(gated_mlp=True, n_kv_head=1, d_model=64), 64
    model, ids = Transformer(config, V), torch.zeros((1, length), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, attention_kernels("math"):
        loss = model(ids, ids).mean()
    flops = flops_per_token(config, count_parameters(config, V), length, checkpointed)
    unseen = flops.attention * (length - 1) / (length + 1)
    assert counter.get_total_flops() == pytest.approx(length * (flops.forward + unseen), rel=1e-6)
    assert loss.requires_grad
    head = 2 * V * config.d_model
    assert flops.backward == 2 * flops.forward + (flops.forward - head if checkpointed else 0)


def test_frozen_weights_need_no_gradients(model_config: Callable[..., ModelConfig]) -> None:
    config = model_config(ssa=True)
    flops = flops_per_token(config, count_parameters(config, V, True), 64)
    assert flops.backward == flops.forward


def test_flops_of_gpt2_124m() -> None:
    """Six per parameter and token, the usual estimate, and attention's."""
    config = configured("scale=paper", "data=wikitext", "model=gpt2")
    parameters = count_parameters(config.model, vocabulary(config).size)
    flops = training_flops(config, parameters)
    assert config.tokens == 600_000 * 480 * 1024
    assert flops.total - 3 * flops.attention == pytest.approx(6 * 124e6 * config.tokens, rel=0.01)


def test_vocabulary_without_text(tmp_path: Path) -> None:
    assert vocabulary(configured()) == (2048, "data.tokenizer=bpe-2048")
    assert vocabulary(configured("model.vocab_size=999")) == (999, "model.vocab_size")
    here = f"data.cache_dir={tmp_path}"
    assert vocabulary(configured("data.tokenizer=gpt2", here)) == (50_257, "GPT-2's tokenizer")
    size, source = vocabulary(configured("data.tokenizer=org/name", here))
    assert size == 50_257
    assert source == "GPT-2's tokenizer; assumed, as org/name is not on this machine"


def test_checkpoints_of_a_run() -> None:
    config = configured()
    parameters = count_parameters(config.model, 2048)
    weights = 4 * parameters.total
    assert checkpoints(config, parameters) == (2 * 3 * weights + 2 * weights, weights, weights)
    kept = configured("trainer.keep_last=true")
    assert checkpoints(kept, parameters).finished == 4 * weights


def test_every_gpu_of_the_config_has_a_row() -> None:
    assert tuple(GPUS) == get_args(Gpu)


def test_a_gpu_that_is_not_here() -> None:
    config = configured("plan.device=h100")
    device = planned_device(config)
    assert (device.kind, device.precision, device.memory) == ("cuda", "bf16-mixed", 80_000_000_000)
    assert planned_speed(config, device).value == pytest.approx(0.4 * 989e12)
    slower = configured("plan.device=a100", "plan.memory=40GB", "plan.tflops=100", "plan.mfu=0.5")
    device = planned_device(slower)
    assert (device.memory, planned_speed(slower, device).value) == (40_000_000_000, 0.5 * 100e12)
    precise = configured("plan.device=h100", "trainer.precision=32-true")
    assert planned_speed(precise, planned_device(precise)).value is None


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("1.5GiB", 3 * 2**29), ("512 mb", 512 * 10**6)])
def test_sizes(text: str, size: int) -> None:
    assert configured(f"plan.memory='{text}'").plan.memory_bytes == size


def test_processes_share_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "timed_speed", lambda precision: 1e11)
    configs = [configured("trainer.device=cpu", f"trainer.devices={n}") for n in (1, 2)]
    one, two = map(planned_device, configs)
    assert one.memory is not None
    assert two.memory == pytest.approx(one.memory / 2, abs=1)
    assert [planned_speed(config, one).value for config in configs] == [1e11, 5e10]
    assert one.base > 1e8


@pytest.mark.parametrize(
    ("overrides", "share"),
    {
        ("trainer.batch_size=8", "trainer.micro_batch_size=8"): DeviceShare(1, 8, 1),
        ("trainer.batch_size=8", "trainer.micro_batch_size=8", "trainer.devices=4"): DeviceShare(4, 2, 1),
        ("trainer.batch_size=32", "trainer.micro_batch_size=4", "trainer.devices=2", "trainer.nodes=2"): DeviceShare(
            4, 4, 2
        ),
    }.items(),
)
def test_batches_of_several_devices(overrides: tuple[str, ...], share: DeviceShare) -> None:
    assert DeviceShare.of(configured(*overrides), "cuda") == share


def test_automatic_number_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("trainer.devices=auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert DeviceShare.of(config, "cuda").devices == 4
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert DeviceShare.of(config, "cpu").devices == 1


def test_memory_of_a_device_by_strategy(model_config: Callable[..., ModelConfig]) -> None:
    p = count_parameters(model_config(n_layer=4), V)
    device = gpu(80)._replace(base=5)
    alone = memory_parts(p, STEP, device)
    assert list(alone.values()) == [4 * p.total, 4 * p.total, 8 * p.total, 10_000, 1_000, 5]
    assert memory_parts(p, STEP, device, 4, "ddp")["gradient buckets"] == 4 * p.total
    sharded = memory_parts(p, STEP, device, 4, "fsdp")
    assert sharded["weights"] == p.total
    assert sharded["optimizer state"] == 2 * p.total
    assert sharded["gathered layer, embeddings"] == 2 * 4 * (p.block + p.root)
    on_cpu = memory_parts(p, STEP, device._replace(kind="cpu"))
    assert on_cpu["allocator"] == memory.HEAP_WASTE * STEP.small_in_graph
    assert on_cpu["best weights"] == 0
    ends = memory_parts(p, STEP, device._replace(kind="cpu"), best=5_000)
    assert ends["best weights"] == 5_000 - (10_000 + 1_000 - 8_000), "large tensors have been returned by then"


@pytest.mark.parametrize(
    ("overrides", "gigabytes", "strategy"),
    [
        ((), 80, "auto"),
        (("trainer.devices=4",), 80, "ddp"),
        (("trainer.devices=4",), 1, "fsdp"),
        (("trainer.devices=4", "trainer.strategy=ddp"), 1, "ddp"),
        (("trainer.devices=4", "trainer.strategy=fsdp"), 80, "fsdp"),
    ],
)
def test_choice_of_a_strategy(overrides: tuple[Any, ...], gigabytes: float, strategy: str) -> None:
    config = configured("model/size=124m", "data.block_size=64", *overrides)
    name, reason = choose_strategy(config, 2048, gpu(gigabytes))
    assert name == strategy
    assert reason
