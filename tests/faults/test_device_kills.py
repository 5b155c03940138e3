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
KILLS, STEPS = 10, 600
SETTINGS = ["trainer.precision=32-true", "trainer.micro_batch_size=1", f"trainer.steps={STEPS}"]
SETTINGS += ["trainer.eval_every=50", "trainer.checkpoint_every=10", "trainer.log_every=10"]


@pytest.mark.parametrize("victims", ["one", "all"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_kills_at_random_moments(tiny, tmp_path, strategy, victims) -> None:
    devices = ["trainer.devices=2", f"trainer.strategy={strategy}"]
    unbroken = tiny(*SETTINGS, *devices)
    ranks.train(unbroken)
    generator = random.Random(f"{strategy} {victims}")
    broken = tiny(*SETTINGS, *devices, f"output_dir={tmp_path}/broken")
    for step in sorted(generator.sample(range(10, STEPS - 50, 10), KILLS)):
        with pytest.raises(UserError, match=r"^rank \d of 2 was killed by SIGKILL"):
            _train_and_kill(broken, step, generator, victims == "all")
    ranks.train(broken)
    assert numbers(broken) == numbers(unbroken)
    assert same(weights(broken, "best"), weights(unbroken, "best"))


def _train_and_kill(config: Config, step: int, generator: random.Random, everyone: bool) -> None:
    """Kill one rank, or all, some time after the row of a step, which may be in the middle of a save."""
    start, wait, started = ranks.processes.start, ranks.wait, list[BaseProcess]()
    rows = folder(config) / "metrics.jsonl"

    def recorded(*arguments: object) -> BaseProcess:
        started.append(start(*arguments))  # type: ignore[arg-type]
        return started[-1]

    def killing(sentinels: list[int], _: float) -> list:
        if rows.exists() and re.search(rf'^{{"step": {step},', rows.read_text(), re.MULTILINE):
            time.sleep(generator.uniform(0, 0.1))
            for process in started if everyone else [generator.choice(started)]:
                process.kill()
        return wait(sentinels, 0.02)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks.processes, "start", recorded)
        patch.setattr(ranks, "wait", killing)
        ranks.train(config)
