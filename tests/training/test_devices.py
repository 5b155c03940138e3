"""Runs on several devices: processes over gloo on the CPU, equal to one device, and resumed on any number."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import changed_ranks
import pytest
import torch
from tiny_runs import folder, numbers, rows, same, tiny_config, weights

from ssa.config import Config
from ssa.errors import UserError
from ssa.launch import ranks
from ssa.record.checksums import damage
from ssa.record.resume_point import resume_point
from ssa.record.run_model import load_run

pytestmark = pytest.mark.slow
tiny = pytest.fixture(tiny_config)
FLOAT32 = "trainer.precision=32-true"
GPT2 = ["trainer.micro_batch_size=1", "model.dropout=0.1"]  # tied embeddings; accumulates
LLAMA = ["model=ssa_llama", "model.n_kv_head=1", "data.document_mask=true"]
# Every term of a temperature that has parameters, but the shared one, which other runs have
TERMS = {
    "query": "{token: frequency, position: ssmax, multiplier: constant}",
    "key": "{token: none, position: released, multiplier: rms_norm}",
    "value": "{token: mlp, position: log, multiplier: none}",
    "output": "{token: gate, position: none, multiplier: none}",
}


def on(strategy: str, devices: int) -> list[str]:
    return [f"trainer.devices={devices}", f"trainer.strategy={strategy}"]


def assert_close(one: Config, other: Config) -> None:
    """The same rows, keys and losses."""
    first, second = rows(one), rows(other)
    assert [row.keys() for row in first] == [row.keys() for row in second]
    for a, b in zip(first, second, strict=True):
        for name in a.keys() & {"step", "tokens"}:
            assert a[name] == b[name]
        for name in a.keys() & {"train/loss", "train/grad_norm", "val/loss", "val/attention_entropy"}:
            assert math.isclose(a[name], b[name], rel_tol=1e-5), (name, a[name], b[name])


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize(("strategy", "devices"), [("ddp", 2), ("fsdp", 2), ("fsdp", 4)])
def test_a_run_is_the_same_on_any_number_of_devices(tiny, tmp_path, strategy, devices, model) -> None:
    one = tiny(FLOAT32, *model)
    several = tiny(FLOAT32, *model, *on(strategy, devices), f"output_dir={tmp_path}/several")
    assert one.run_id == several.run_id
    first, second = ranks.train(one), ranks.train(several)
    assert_close(one, several)
    counts = [name for name in first if name.startswith(("data.", "parameters.")) or name in ("tokens", "steps")]
    assert {name: first[name] for name in counts} == {name: second[name] for name in counts}
    assert math.isclose(first["best/test/loss"], second["best/test/loss"], rel_tol=1e-5)
    assert damage(folder(several)) == []
    environment = json.loads((folder(several) / "environment.json").read_text())
    assert (environment["devices"], environment["nodes"], environment["strategy"]) == (devices, 1, strategy)
    ours, theirs = (load_run(folder(config))[1].state_dict() for config in (one, several))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)


def test_every_term_trains_sharded(tiny, tmp_path) -> None:
    settings = [FLOAT32, *(f"model.temperature.{name}={terms}" for name, terms in TERMS.items())]
    one, several = tiny(*settings), tiny(*settings, *on("fsdp", 2), f"output_dir={tmp_path}/several")
    ranks.train(one)
    ranks.train(several)
    assert_close(one, several)


@pytest.mark.parametrize(("strategy", "other"), [("ddp", on("fsdp", 4)), ("fsdp", ["trainer.devices=1"])])
def test_a_killed_run_resumes_bitwise_and_on_another_number_of_devices(tiny, tmp_path, strategy, other) -> None:
    settings = [FLOAT32, "trainer.micro_batch_size=1", *on(strategy, 2)]
    unbroken = tiny(*settings)
    ranks.train(unbroken)
    for name, way in (("same", on(strategy, 2)), ("other", other)):
        path = tmp_path / name
        killed = tiny(*settings, f"output_dir={path}")
        with pytest.raises(
            UserError, match=r"rank \d of 2 was killed by SIGKILL.*; to resume: python train\.py resume="
        ):
            _train_and_kill(killed, step=5)
        resumed = tiny(FLOAT32, "trainer.micro_batch_size=1", *way, f"output_dir={path}")
        ranks.train(resumed)
        if name == "same":
            assert numbers(resumed) == numbers(unbroken)
            assert same(weights(resumed, "best"), weights(unbroken, "best"))
        else:
            assert_close(unbroken, resumed)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_no_collective_is_wasted(tiny, monkeypatch, strategy) -> None:
    layers, blocks_and_rest = 2, 3
    monkeypatch.setattr(ranks, "_train", changed_ranks.profiled)
    config = tiny(FLOAT32, "trainer.micro_batch_size=1", *on(strategy, 2))  # two micro-batches a step
    ranks.train(config)
    *_, first, last = json.loads((Path(config.output_dir) / changed_ranks.COUNTS).read_text())
    if strategy == "ddp":
        assert (first, last) == ({}, {"gloo:all_reduce": 2}), "gradients, in one bucket; loss"
    else:
        gathered = {"gloo:all_gather": 2 * layers + 1}  # each block for each pass, the rest once
        assert first == gathered
        # gloo sums and scatters with all_reduce: gradients; their norm; loss
        assert last == gathered | {"gloo:all_reduce": blocks_and_rest + 2}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_record_names_the_rank_that_failed(tiny, monkeypatch, strategy) -> None:
    monkeypatch.setattr(ranks, "_train", changed_ranks.failing)
    config = tiny(FLOAT32, *on(strategy, 2))
    with pytest.raises(UserError, match=f"^rank 1: {changed_ranks.FAILURE}$"):
        ranks.train(config)
    status = json.loads((folder(config) / "status.json").read_text())
    assert (status["status"], status["error"]) == ("failed", f"RankFailed: rank 1: {changed_ranks.FAILURE}")


def test_damaged_shards_are_named_and_passed_over(tiny) -> None:
    settings = [FLOAT32, *on("fsdp", 2), "trainer.steps=100", "trainer.eval_every=100", "trainer.checkpoint_every=20"]
    with pytest.raises(UserError, match="was killed by SIGKILL"):
        _train_and_kill(tiny(*settings), step=45)
    config = tiny(*settings)
    kept = [folder(config) / "checkpoints" / name / "__1_0.distcp" for name in ("last.ckpt", "previous.ckpt")]
    content = bytearray(kept[0].read_bytes())
    content[len(content) // 2] ^= 1
    kept[0].write_bytes(bytes(content))
    point = resume_point([path.parent for path in kept], folder(config) / "checkpoints" / "best.ckpt", config)
    assert point is not None
    assert point.path == kept[1].parent
    assert point.damaged == f"{kept[0]}: damaged (wrong checksum)"
    kept[1].unlink()
    with pytest.raises(UserError, match=r"damaged \(wrong checksum\); .*No such file.*; rerun=true starts over$"):
        ranks.train(config)
    assert ranks.train(tiny(*settings, "rerun=true"))["status"] == "finished"


def _train_and_kill(config: Config, step: int) -> None:
    """Kill one rank once the run has passed a step."""
    start, started = ranks.processes.start, list[BaseProcess]()

    def recorded(*arguments: object) -> BaseProcess:
        started.append(start(*arguments))  # type: ignore[arg-type]
        return started[-1]

    def killing(wait: Callable[..., list], *arguments: object) -> list:
        file = folder(config) / "metrics.jsonl"
        if file.exists() and f'{{"step": {step},' in file.read_text():
            started[step % 2].kill()
        return wait(arguments[0], 0.05)

    with pytest.MonkeyPatch.context() as patch:
        wait = ranks.wait
        patch.setattr(ranks.processes, "start", recorded)
        patch.setattr(ranks, "wait", lambda *arguments: killing(wait, *arguments))
        ranks.train(config)
