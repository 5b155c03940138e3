"""Runs as lists of overrides."""

from __future__ import annotations

from ssa.command_line.compose import configured
from ssa.launch.run import Run


def test_a_run_composed_once_for_all_seeds_is_the_composed_run() -> None:
    overrides = ("model=gpt2", "scale=smoke")
    for seed in (0, 3, 123456789):
        assert Run((*overrides, f"seed={seed}")).config == configured(*overrides, f"seed={seed}")
    named = "experiment=of-${seed}"
    assert Run((*overrides, named, "seed=3")).config.experiment == "of-3"
    assert Run((*overrides, "seed=03")).refusal
    assert Run((*overrides, "seed=1", "seed=2")).refusal == Run((*overrides, "seed=2")).refusal == ""
    assert "trainer.steps" in Run((*overrides, "trainer.steps=0", "seed=1")).refusal
