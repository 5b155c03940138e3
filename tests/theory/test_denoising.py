from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.__main__ import main
from experiments.table2_denoising.cells import DenoisingCell, DenoisingResults
from experiments.table2_denoising.estimators import learn
from experiments.table2_denoising.tables import checks
from ssa.theory.denoising import (
    DATA,
    FIXED,
    METHODS,
    Denoiser,
    Estimator,
    Task,
    bayes,
    best_marker_map,
    clean_average,
    marker_map,
    muted_average,
    naive,
    simulate,
)
from ssa.theory.ensemble import CHUNK, generator, train

TASK = Task(length=7, noise_rate=0.35, dimension=3, sigma=0.7)
OTHERS = [  # not in the experiment's grid
    TASK,
    Task(length=20, noise_rate=0.9, dimension=2, sigma=2.0),
    Task(length=50, noise_rate=0.1, dimension=1, sigma=0.3, noise_scale=3.0),
    Task(length=1, noise_rate=0.5, dimension=4, sigma=1.0, noise_scale=0.2),
]
LIMITS = {**FIXED, "muted": muted_average, "marker map": best_marker_map}


def mean(errors: Tensor) -> tuple[float, float]:
    return errors.mean().item(), errors.std().item() / len(errors) ** 0.5


@pytest.mark.parametrize("task", OTHERS, ids=str)
def test_closed_forms_agree_with_the_data_process(task: Task) -> None:
    estimators = {name: build(task) for name, build in LIMITS.items()}
    for estimator, errors in zip(estimators.values(), simulate(task, list(estimators.values()), 20_000), strict=True):
        found, error = mean(errors)
        assert found == pytest.approx(estimator.risk(task), abs=4 * error)


def test_without_noise_and_with_noise_only() -> None:
    sigma, s = 0.5, 1.5
    clean = Task(length=10, noise_rate=0.0, dimension=2, sigma=sigma, noise_scale=s)
    assert naive(clean).risk(clean) == pytest.approx(sigma**2 / 10)
    assert clean_average(clean).risk(clean) == pytest.approx(sigma**2 / 10)
    for build in (bayes, muted_average, best_marker_map):
        assert build(clean).risk(clean) == pytest.approx(sigma**2 / (10 + sigma**2))
    noise = Task(length=10, noise_rate=1.0, dimension=2, sigma=sigma, noise_scale=s)
    assert naive(noise).risk(noise) == pytest.approx(1 + s**2 / 10)
    for build in (clean_average, bayes, muted_average, best_marker_map):
        assert build(noise).risk(noise) == pytest.approx(1)


def test_one_token_by_hand() -> None:
    task = Task(length=1, noise_rate=0.25, dimension=5, sigma=2.0)  # s^2 = 5
    assert naive(task).risk(task) == pytest.approx(0.75 * 4 + 0.25 * (1 + 5))
    assert bayes(task).risk(task) == pytest.approx(0.75 * 4 / 5 + 0.25)


def test_bayes_is_gaussian_conditioning() -> None:
    tokens, _ = TASK.draw(20, generator(DATA, 5))
    for row, estimate in zip(tokens, bayes(TASK)(tokens), strict=True):
        clean = row[row[:, -2] > 0][:, :-2]
        covariance = torch.ones(len(clean), len(clean)) + TASK.sigma**2 * torch.eye(len(clean))  # per coordinate
        expected = torch.ones(len(clean)).double() @ torch.linalg.solve(covariance.double(), clean)
        assert torch.allclose(estimate, expected)


def test_bayes_has_the_risk_of_the_binomial_sum() -> None:
    n, rate, variance = TASK.length, TASK.noise_rate, TASK.sigma**2
    chances = [math.comb(n, k) * (1 - rate) ** k * rate ** (n - k) for k in range(n + 1)]
    expected = math.fsum(chance * variance / (k + variance) for k, chance in enumerate(chances))
    assert bayes(TASK).risk(TASK) == pytest.approx(expected)
    found, error = mean(simulate(TASK, [bayes(TASK)], 20_000, seed=3)[0])
    assert found == pytest.approx(expected, abs=4 * error)


def test_the_data_process() -> None:
    tokens, signal = TASK.draw(20_000, generator(DATA, 1))
    values, marker, read_out = tokens[..., :-2], tokens[..., -2], tokens[..., -1]
    clean = marker > 0
    assert not read_out.any()
    assert set(marker.unique().tolist()) == {-1.0, 1.0}
    assert clean.double().mean().item() == pytest.approx(1 - TASK.noise_rate, abs=0.006)
    residual = values - signal[:, None]
    assert residual[clean].std().item() == pytest.approx(TASK.sigma, rel=0.01)
    for kind in (clean, ~clean):  # indistinguishable by norm
        assert values[kind].std().item() == pytest.approx((1 + TASK.sigma**2) ** 0.5, rel=0.01)
    assert (values * signal[:, None])[~clean].mean().item() == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("task", OTHERS, ids=str)
def test_shrinkage_and_ratio_are_optimal(task: Task) -> None:
    share = naive(task)
    best = share.shrunk(task)
    factor = (best.clean / share.clean)[0].item()
    for other in (0.9 * factor, 1.1 * factor, 1.0):
        assert best.risk(task) <= Estimator(other * share.clean, other * share.noise).risk(task)
    least = min(marker_map(task, 10 ** (-step / 20)).risk(task) for step in range(240))
    assert best_marker_map(task).risk(task) <= least + 1e-9
    assert bayes(task).risk(task) <= best_marker_map(task).risk(task)


def mute(model: Denoiser, gain: float) -> None:
    """Set by hand: values are gain v, with temperature 1 where the marker is 1 and 0 where it is -1."""
    m = model.output.size(0)
    with torch.no_grad():
        model.value.zero_()
        model.value[:m, :m] = torch.eye(m)
        model.value[m, m] = -8  # a feature of gelu 8 on noise, about 0 on the others
        model.output.zero_()
        model.output[:, :m] = gain * torch.eye(m)
        token, position = (model.get_parameter(f"temperature.value.terms.{name}") for name in PARTS)
        token[0, m] = -5
        position.fill_(-math.inf)


PARTS = ("token.weight", "position.alpha")


def see_markers(model: Denoiser, ratio: float) -> None:
    """Set the map by hand: noise gets ``ratio`` times a clean token's weight."""
    with torch.no_grad():
        assert model.attention is not None
        for name in ("query", "key"):
            model.attention.get_parameter(name).zero_()
        model.attention.get_parameter("query")[0, -1] = model.read_out.size(-1) ** 0.5
        model.attention.get_parameter("key")[0, -2] = -math.log(ratio) / 2


def test_muted_values_under_a_uniform_map_have_the_risk_in_closed_form() -> None:
    model, limit = Denoiser(TASK, METHODS["uniform value-selective"], seed=0), muted_average(TASK)
    mute(model, gain=limit.clean[0].item() * TASK.length)
    tokens, _ = TASK.draw(50, generator(DATA, 2))
    assert torch.allclose(model.denoise(tokens), limit(tokens), atol=1e-10)
    found, error = mean(simulate(TASK, [model.denoise], 20_000)[0])
    assert found == pytest.approx(limit.risk(TASK), abs=4 * error)


def test_muted_values_with_a_marker_map_are_bayes() -> None:
    model, ratio = Denoiser(TASK, METHODS["value-selective"], seed=0), TASK.sigma**2 / (TASK.length + TASK.sigma**2)
    mute(model, gain=1 - ratio)
    see_markers(model, ratio)
    tokens, _ = TASK.draw(50, generator(DATA, 2))
    assert torch.allclose(model.denoise(tokens), bayes(TASK)(tokens), atol=1e-10)


def test_a_vanilla_map_reaches_its_limit() -> None:
    model, limit = Denoiser(TASK, METHODS["vanilla"], seed=0), marker_map(TASK, 0.02)
    m = TASK.dimension
    see_markers(model, 0.02)
    with torch.no_grad():
        model.value.copy_(torch.eye(TASK.width))
        model.output.zero_()
        model.output[:, :m] = limit.clean[-1].item() * TASK.length * torch.eye(m)  # at k = L the weights are 1 / L
    tokens, _ = TASK.draw(50, generator(DATA, 2))
    assert torch.allclose(model.denoise(tokens), limit(tokens), atol=1e-10)


def trained(method: str, steps: int, frozen: bool = False) -> list[Denoiser]:
    models = [Denoiser(TASK, METHODS[method], seed) for seed in range(2)]
    if frozen:
        for model in models:
            model.get_parameter("temperature.value.terms.position.alpha").data.fill_(-math.inf)
            for values in model.temperature.parameters():
                values.requires_grad_(False)

    def draw(seed: int, chunk: int) -> tuple[Tensor, Tensor]:
        tokens, signal = TASK.draw(CHUNK * 8, generator(DATA, seed, chunk))
        return tokens.reshape(CHUNK, 8, *tokens.shape[1:]), signal.reshape(CHUNK, 8, -1)

    train(models, draw, steps=steps, lr=0.03)
    return models


@pytest.mark.parametrize("kind", ["", "uniform "])
def test_identity_temperatures_are_vanilla_bit_for_bit(kind: str) -> None:
    tokens, _ = TASK.draw(50, generator(DATA, 2))
    vanilla, identity = trained(f"{kind}vanilla", 60), trained(f"{kind}value-selective", 60, frozen=True)
    for one, other in zip(vanilla, identity, strict=True):
        assert torch.equal(one.denoise(tokens), other.denoise(tokens))
    free = trained(f"{kind}value-selective", 60)
    assert not torch.allclose(free[0].denoise(tokens), vanilla[0].denoise(tokens))


def test_equal_seeds_give_equal_start_matrices() -> None:
    models = [Denoiser(TASK, method, seed=3) for method in METHODS.values()]
    for model in models:
        assert torch.equal(model.value, models[0].value)
        assert torch.equal(model.output, models[0].output)
        if model.attention is not None and models[0].attention is not None:
            for name in ("query", "key"):
                assert torch.equal(model.attention.get_parameter(name), models[0].attention.get_parameter(name))
    assert not torch.equal(Denoiser(TASK, METHODS["vanilla"], seed=4).value, models[0].value)


@pytest.mark.slow
def test_training_approaches_the_limits_and_never_passes_bayes() -> None:
    arguments = {"task": asdict(TASK), "lr": 0.03, "batch": 32, "contexts": 4000, "seeds": 2}
    for method in METHODS:
        found = learn(method=method, steps=250, vectorized=True, **arguments)
        assert found["limit"] >= bayes(TASK).risk(TASK)
        for run in found["runs"]:
            assert run["excess"] > -4 * run["error"]
            assert run["mse"] < naive(TASK).shrunk(TASK).risk(TASK) * 1.05


def test_sequential_training_gives_the_same_numbers() -> None:
    arguments = {"task": asdict(TASK), "lr": 0.03, "steps": 20, "batch": 4, "contexts": 200, "seeds": 2}
    together, alone = (learn(method="SSA", vectorized=value, **arguments) for value in (True, False))
    for one, other in zip(together["runs"], alone["runs"], strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(("excess", "monte_carlo", "passed"), [(0.0, 0.5, [True, True]), (-0.1, 0.6, [False, False])])
def test_checks_can_fail(excess: float, monte_carlo: float, passed: list[bool]) -> None:
    cell = DenoisingCell(0.4, 8, 0.01)
    found = DenoisingResults(cell, [cell])
    found.fixed[0.4, 8] = {"naive": {"closed": 0.5, "mean": monte_carlo, "error": 0.02}}
    found.learned[cell, "vanilla"] = {"runs": [{"mse": 0.3, "excess": excess, "error": 0.01}]}
    assert [row["passed"] for row in checks(found)] == passed


def test_the_command(tmp_path: Path) -> None:
    quick = ["steps=2", "noise_rates=[1.0]", "lengths=[]", "contexts=1000"]
    where = [f"to={tmp_path / 'results'}", f"output_dir={tmp_path / 'outputs'}"]
    assert main(["table2_denoising", "scale=smoke", "jobs=1", *quick, *where]) == 0
    written = {path.name for path in (tmp_path / "results").iterdir()}
    names = ("runs.csv", "fixed.csv", "differences.csv", "checks.csv", "summary.md", "conclusions.csv", "figure.png")
    assert {f"smoke_{name}" for name in names} <= written
    with (tmp_path / "results" / "smoke_runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == (5 + 4) * 2
    assert {run["tau_clean"] for run in runs if run["noise_rate"] == "1"} == {"-"}


def test_an_invalid_setting_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["table2_denoising", "scale=smoke", "noise_rate=1.5"]) != 0
    lines = capfd.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "noise_rate" in lines[0]
