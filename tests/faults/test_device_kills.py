"""Ranks of a run that are killed at random moments, again and again: it resumes to the same end."""

from __future__ import annotations

import random
import re
import time
from multiprocessing.process import BaseProcess

import pytest
from tiny_runs import folder, numbers, same, tiny_config, weights

from ssa.config import Config
from ssa.errors import UserError
from ssa.launch import ranks

pytestmark = pytest.mark.faults
tiny = pytest.fixture(tiny_config)
KILLS = 10
SETTINGS = ["trainer.precision=32-true", "trainer.micro_batch_size=1", "trainer.steps=60", "trainer.eval_every=10"]


@pytest.mark.parametrize("victims", ["one", "all"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_kills_at_random_moments(tiny, tmp_path, strategy, victims) -> None:
    devices = ["trainer.devices=2", f"trainer.strategy={strategy}"]
    unbroken = tiny(*SETTINGS, *devices)
    began = time.monotonic()
    ranks.train(unbroken)
    seconds = time.monotonic() - began
    generator = random.Random(f"{strategy} {victims}")
    broken = tiny(*SETTINGS, *devices, f"output_dir={tmp_path}/broken")
    killed = 0
    while killed < KILLS and not (folder(broken) / "summary.json").exists():
        said = _train_and_kill(broken, generator.uniform(0.2, 0.8) * seconds, generator, victims == "all")
        assert re.match(r"rank \d of 2 was killed by SIGKILL|$", said)
        killed += bool(said)
    assert killed >= KILLS // 2
    ranks.train(broken)
    assert numbers(broken) == numbers(unbroken)
    assert same(weights(broken, "best"), weights(unbroken, "best"))


def _train_and_kill(config: Config, after: float, generator: random.Random, everyone: bool) -> str:
    """The error of the run; empty if it has ended before."""
    start, wait, started = ranks.processes.start, ranks.wait, list[BaseProcess]()
    end = time.monotonic() + after

    def recorded(*arguments: object) -> BaseProcess:
        started.append(start(*arguments))  # type: ignore[arg-type]
        return started[-1]

    def killing(sentinels: list[int], _: float) -> list:
        if time.monotonic() > end:
            for process in started if everyone else [generator.choice(started)]:
                process.kill()
        return wait(sentinels, 0.05)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks.processes, "start", recorded)
        patch.setattr(ranks, "wait", killing)
        try:
            ranks.train(config)
        except UserError as error:
            return str(error)
    return ""
