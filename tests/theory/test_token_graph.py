"""Figure 3 and table 1: the graph, what is learned about it, and the two commands."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.__main__ import main
from experiments.engine.experiment import find_experiment
from experiments.engine.tuning import best_setting
from experiments.fig3_token_graph.cells import DEGREES, TokenGraphSettings, cached_job
from experiments.table1_degree_temperature.experiment import association
from ssa.config import SCALES
from ssa.theory.attention_map import QUERY, VANILLA
from ssa.theory.ensemble import generator, train
from ssa.theory.token_graph import METHODS, NextToken, TokenGraph, learn, parameters

WIDE = [2, 4, 8, 16]
CELL: dict[str, Any] = {
    "vocabulary": 24,
    "degrees": [2, 4, 8],
    "width": 4,
    "normalized": False,
    "lr": 0.1,
    "steps": 60,
    "sequences": 8,
    "length": 8,
    "seeds": 2,
    "vectorized": True,
}


@pytest.mark.parametrize(("vocabulary", "degrees"), [(32, WIDE), (65, [1, 2, 4, 8, 16, 32]), (7, [6]), (2, [1])])
def test_rows_are_uniform_over_the_requested_number_of_neighbors(vocabulary: int, degrees: list[int]) -> None:
    graph = TokenGraph.draw(vocabulary, degrees, seed=3)
    assert torch.allclose(graph.transitions.sum(1), torch.ones(vocabulary, dtype=torch.float64), atol=1e-14)
    assert graph.transitions.diagonal().count_nonzero() == 0
    assert torch.equal((graph.transitions > 0).sum(1), graph.degrees)
    assert torch.equal(graph.transitions.amax(1), 1 / graph.degrees.double())
    shares = [int((graph.degrees == degree).sum()) for degree in degrees]
    assert sum(shares) == vocabulary
    assert max(shares) - min(shares) <= 1


def test_every_node_is_reachable() -> None:
    graph = TokenGraph.draw(40, [1, 1, 1, 2], seed=5)  # too sparse for random neighbors to connect it
    reached = torch.linalg.matrix_power(graph.transitions + torch.eye(40), 64)
    assert (reached > 0).all()
    assert (graph.stationary > 0).all()


@pytest.mark.parametrize("degrees", [[], [0, 2], [16]])
def test_impossible_degrees_are_refused(degrees: list[int]) -> None:
    with pytest.raises(ValueError, match=r"valid: at least one, each from 1 to 15"):
        TokenGraph.draw(16, degrees, seed=0)


@pytest.mark.parametrize("degree", [1, 3, 7])
def test_the_floor_of_equal_degrees_is_the_logarithm_of_the_degree(degree: int) -> None:
    assert TokenGraph.draw(20, [degree], seed=1).floor == pytest.approx(math.log(degree), abs=1e-12)


def test_by_hand() -> None:
    """0 -> 1 or 2, 1 -> 0, 2 -> 0: half the time at 0, with a choice of two, none elsewhere."""
    graph = TokenGraph(torch.tensor([[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]], dtype=torch.float64))
    assert graph.stationary.tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert graph.floor == pytest.approx(0.5 * math.log(2))
    uniform = torch.full((3, 3), 1 / 3, dtype=torch.float64).log()
    assert graph.excess(uniform) == pytest.approx(math.log(3) - 0.5 * math.log(2))
    assert graph.l1(uniform).tolist() == pytest.approx([2 / 3, 4 / 3, 4 / 3])


def test_floor_and_shares_are_those_of_a_simulated_walk() -> None:
    """20,000 independent walks in numpy from any node; after 100 steps the start does not matter."""
    graph, draws, walks = TokenGraph.draw(32, WIDE, seed=2), np.random.default_rng(0), 20_000
    cumulated = graph.transitions.numpy().cumsum(1)
    state = draws.integers(32, size=walks)
    for _ in range(100):
        state = (draws.random(walks)[:, None] > cumulated[state]).sum(1)
    pi = graph.stationary.numpy()
    errors = (np.bincount(state, minlength=32) / walks - pi) / np.sqrt(pi * (1 - pi) / walks)
    assert np.abs(errors).max() < 4.5
    assert np.square(errors).mean() < 2
    logarithms = np.log(graph.degrees.numpy())[state]
    assert abs(logarithms.mean() - graph.floor) < 4 * logarithms.std() / math.sqrt(walks)


def test_minibatches_are_walks_that_start_in_pi() -> None:
    graph = TokenGraph.draw(24, [2, 3, 7], seed=4)
    counts = graph.counts(50, 64, 5, generator(7))
    assert torch.equal(counts, graph.counts(50, 64, 5, generator(7)))
    assert not torch.equal(counts, graph.counts(50, 64, 5, generator(8)))
    assert torch.equal(counts.sum((1, 2)), torch.full((50,), 64.0 * 5))
    assert (counts[:, graph.transitions == 0] == 0).all()
    total, expected = counts.double().sum(0), 50 * 64 * 5 * graph.stationary[:, None] * graph.transitions
    errors = (total - expected)[expected > 0] / expected[expected > 0].sqrt()  # of successive steps, nearly Poisson
    assert errors.abs().max() < 6
    assert errors.square().mean() < 2


def test_a_walk_continues_from_its_last_node() -> None:
    """In one long walk, each token except the ends is left as often as it is entered."""
    counts = TokenGraph.draw(24, [2, 4], seed=4).counts(3, 1, 1000, generator(7))
    assert (counts.sum(1) - counts.sum(2)).abs().sum(1).max() <= 2


@pytest.mark.parametrize("method", list(METHODS))
def test_errors_are_within_their_bounds(method: str) -> None:
    """Untrained, barely trained and well trained models, and exactly P*."""
    for steps, lr in ((1, 1e-9), (60, 0.1), (60, 3.0)):
        for one in learn(method=method, **{**CELL, "steps": steps, "lr": lr})["runs"]:
            assert one["excess"] > -1e-12
            assert 0 <= one["l1"] <= 2
            assert 0 <= one["l1_nodes"] <= 2
    graph = TokenGraph.draw(24, [2, 4, 8], seed=0)
    exact = graph.transitions.clamp(min=1e-300).log()
    assert abs(graph.excess(exact)) < 1e-12
    assert graph.l1(exact).max() < 1e-12


def test_an_ample_model_comes_near_the_floor() -> None:
    for method in ("vanilla", "ssa"):
        cell = {**CELL, "vocabulary": 12, "degrees": [1, 2, 4], "width": 12, "steps": 400, "sequences": 16}
        assert all(one["excess"] < 0.02 and one["l1"] < 0.12 for one in learn(method=method, **cell)["runs"])


def test_the_loss_is_the_cross_entropy_of_the_tokens_counted() -> None:
    graph, model = TokenGraph.draw(24, [2, 4, 8], seed=0), NextToken(24, 4, QUERY)
    counts = graph.counts(1, 4, 3, generator(0))[0]
    log_p = model.log_probabilities().detach()
    pairs = [(i, j) for i, j in counts.nonzero().tolist() for _ in range(int(counts[i, j]))]
    assert model(counts).item() == pytest.approx(-sum(float(log_p[pair]) for pair in pairs) / 12)


@pytest.mark.parametrize("normalized", [False, True])
def test_ssa_frozen_at_the_identity_is_vanilla(normalized: bool) -> None:
    """Bit for bit, after training on the same data."""
    graphs = [TokenGraph.draw(24, [2, 4, 8], seed) for seed in range(3)]
    learned = []
    for temperature in (VANILLA, QUERY):
        models = [NextToken(24, 4, temperature, normalized=normalized, seed=seed) for seed in range(3)]
        for model in models:
            for values in model.attention.temperature.parameters():
                values.requires_grad_(False)
                values.fill_(0 if values.ndim == 2 else -math.inf)  # w, alpha
        train(
            models,
            lambda seed, chunk: (graphs[seed].counts(50, 8, 8, generator(seed, chunk)),),
            steps=60,
            lr=0.1,
        )
        learned.append(torch.stack([model.log_probabilities() for model in models]))
    assert not torch.equal(learned[0][0], learned[0][1])
    assert torch.equal(*learned)


def test_methods_have_equal_start_weights() -> None:
    starts = [NextToken(24, 4, VANILLA, seed=seed) for seed in (0, 0, 1)]
    ssa = NextToken(24, 4, QUERY, seed=0)
    for name in ("embeddings", "attention.query", "attention.key"):
        same, again, other = (model.get_parameter(name) for model in starts)
        assert torch.equal(same, again)
        assert torch.equal(same, ssa.get_parameter(name))
        assert not torch.equal(same, other)


def test_normalized_embeddings_ignore_their_length() -> None:
    model = NextToken(24, 4, QUERY, normalized=True)
    before = model.logits()
    with torch.no_grad():
        model.embeddings.mul_(torch.rand(24, 1) + 0.5)
    assert torch.allclose(model.logits(), before)


def test_sequential_training_gives_the_same_numbers() -> None:
    together, apart = (learn(method="ssa", **{**CELL, "vectorized": choice})["runs"] for choice in (True, False))
    for one, other in zip(together, apart, strict=True):
        for name, value in one.items():
            assert np.allclose(value, other[name], rtol=1e-9, atol=1e-9), name


def test_the_wider_vanilla_is_the_first_that_is_not_smaller_than_ssa() -> None:
    settings = find_experiment("fig3_token_graph").settings(**find_experiment("fig3_token_graph").values("laptop"))
    assert isinstance(settings, TokenGraphSettings)
    for width in (4, 8, 16):
        _, wider = cached_job(settings, "wider", 0.1, 2, width=width)
        needed = parameters(settings.vocabulary, width, "ssa")
        assert needed == settings.vocabulary * width + 2 * width**2 + width + 1
        assert wider["method"] == "vanilla"
        assert parameters(settings.vocabulary, wider["width"] - 1, "vanilla") < needed
        assert parameters(settings.vocabulary, wider["width"], "vanilla") >= needed


@pytest.mark.parametrize("scale", SCALES)
def test_both_experiments_use_the_same_runs(scale: str) -> None:
    jobs = []
    for experiment in (find_experiment("fig3_token_graph"), find_experiment("table1_degree_temperature")):
        settings = experiment.settings(**experiment.values(scale))
        assert isinstance(settings, TokenGraphSettings)
        jobs.append([cached_job(settings, "ssa", lr, settings.seeds) for lr in settings.learning_rates])
    assert jobs[0] == jobs[1]


def test_association() -> None:
    assert association([3, 3, 1, 1], [2, 2, 8, 8]) == pytest.approx((1, -1))
    assert association([3, 1, 3, 1], [2, 2, 8, 8]) == pytest.approx((0, 0))
    assert all(math.isnan(value) for value in association([2, 2 + 1e-12, 2], [2, 4, 8]))
    assert all(math.isnan(value) for value in association([1, 2, 3], [4, 4, 4]))


def test_a_run_that_diverged_is_never_the_best() -> None:
    assert best_setting({0.1: [3.0, 3.0], 0.3: [1.0, math.nan], 1.0: [2.0, 3.5]}) == 1.0


@pytest.mark.parametrize("spread", list(DEGREES))
def test_neighbors_fit_the_vocabulary(spread: str, capsys: pytest.CaptureFixture[str]) -> None:
    largest = max(DEGREES[spread])  # type: ignore[index]
    assert main(["fig3_token_graph", "scale=smoke", f"vocabulary={largest}", f"spread={spread}"]) == 2
    assert f"valid: a vocabulary above {largest}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["fig3_token_graph", "table1_degree_temperature"])
def test_the_command_writes_its_results(experiment: str, tmp_path: Path) -> None:
    few = ["steps=3", f"to={tmp_path}", f"output_dir={tmp_path}", "jobs=1"]
    assert main([experiment, "scale=smoke", *few]) == 0
    written = {path.name for path in tmp_path.glob("smoke_*")}
    assert {f"smoke_{name}" for name in ("runs.csv", "summary.md", "figure.png", "conclusions.csv")} <= written
    with (tmp_path / "smoke_runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0", "1"}
    assert all(math.isfinite(float(row["excess"])) for row in rows)
