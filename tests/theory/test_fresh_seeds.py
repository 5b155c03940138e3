"""``first_seed``: a seed gives the same result, whichever seeds are trained with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from experiments.table2_denoising import estimators
from ssa.theory import mixed_lookup, target_maps, token_graph
from ssa.theory.denoising import Task

SHORT = {"steps": 10, "lr": 0.03, "vectorized": False}
NODES = {"vocabulary": 16, "degrees": [2, 4], "normalized": False, "sequences": 4, "length": 4}
ITEMS = {"items": 8, "levels": [0, 1], "heads": 1, "value_dim": 2, "batch": 4}
TARGET = {"family": "scaled", "penalty": "effective", "n": 8, "spread": 4.0, "mean": 2.0, "decays": [0.1]}
DENOISING = {"task": asdict(Task(length=8, noise_rate=0.4, dimension=2, sigma=0.5)), "batch": 4, "contexts": 200}
JOBS: dict[str, Callable[..., Any]] = {
    "token graph": lambda **seeds: token_graph.learn(method="ssa", width=4, **NODES, **SHORT, **seeds)["runs"],
    "lookup": lambda **seeds: mixed_lookup.train_lookup(method="ssa", width=8, **ITEMS, **SHORT, **seeds),
    "target map": lambda **seeds: target_maps.fit(method="ssa", width=4, **TARGET, **SHORT, **seeds),
    "denoising": lambda **seeds: estimators.learn(method="SSA", **DENOISING, **SHORT, **seeds)["runs"],
}


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_fresh_seeds(job: Callable[..., Any]) -> None:
    both, fresh = job(seeds=2), job(seeds=1, first_seed=1)
    assert [run["seed"] for run in both] == [0, 1]
    assert fresh == both[1:]
    assert fresh[0] != {**both[0], "seed": 1}
