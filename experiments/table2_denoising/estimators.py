"""Cached jobs of a cell: fixed estimators, and denoisers trained for all seeds at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssa.theory.denoising import DATA, FIXED, METHODS, ROWS, TEST, Denoiser, Task, bayes, simulate
from ssa.theory.ensemble import CHUNK, generator, train


def fixed(*, task: dict[str, Any], contexts: int, seeds: int, first_seed: int = 0) -> dict[str, dict[str, float]]:
    """Closed-form risk (``closed``), Monte Carlo ``mean`` and its standard ``error`` of each fixed estimator.

    Args:
        task: arguments of `Task`.
        contexts, seeds, first_seed: as for `learn`, which tests on the same contexts.
    """
    process = Task(**task)
    estimators = {name: build(process) for name, build in FIXED.items()}
    numbers = range(first_seed, first_seed + seeds)
    errors = torch.cat([simulate(process, list(estimators.values()), contexts, seed) for seed in numbers], dim=-1)
    return {
        name: {"closed": estimator.risk(process), **_mean(errors[row])}
        for row, (name, estimator) in enumerate(estimators.items())
    }


def learn(
    *,
    task: dict[str, Any],
    method: str,
    lr: float,
    steps: int,
    batch: int,
    contexts: int,
    seeds: int,
    vectorized: bool,
    first_seed: int = 0,
) -> dict[str, Any]:
    """Trains a method with seeds ``first_seed``, ..., and tests it against the Bayes estimator.

    Each seed has its own test contexts, equal for all methods: intervals over seeds include the randomness of the test,
    most of which cancels at equal seed.

    Args:
        task: arguments of `Task`.
        method: one of `METHODS`; training data and initial matrices of a seed are equal for all of them.
        lr, steps, vectorized: as for `train`.
        batch: contexts per step, all fresh.
        contexts: test contexts of a seed.
        seeds: number of seeds.
        first_seed: the first of them.

    Returns:
        ``parameters`` of the model; ``limit``, the closed-form risk of the method's limit; and ``runs``, for each seed:
        ``seed``, test ``mse``, its ``excess`` over Bayes with standard ``error`` over contexts, ``noise_weight``, the
        total weight of noise tokens, and the mean value temperatures of clean and noise tokens, ``tau_clean`` and
        ``tau_noise`` (nan where there are no such tokens).
    """
    process, chosen = Task(**task), METHODS[method]
    numbers = range(first_seed, first_seed + seeds)
    models = [Denoiser(process, chosen, seed) for seed in numbers]

    def draw(member: int, chunk: int) -> tuple[Tensor, Tensor]:
        tokens, signal = process.draw(CHUNK * batch, generator(DATA, numbers[member], chunk))
        return tokens.reshape(CHUNK, batch, *tokens.shape[1:]), signal.reshape(CHUNK, batch, -1)

    train(models, draw, steps=steps, lr=lr, vectorized=vectorized)
    runs = []
    for seed, model in zip(numbers, models, strict=True):
        optimal, error = simulate(process, [bayes(process), model.denoise], contexts, seed)
        excess = _mean(error - optimal)
        run = {"seed": seed, "mse": float(error.mean()), "excess": excess["mean"], "error": excess["error"]}
        tokens, _ = process.draw(ROWS, generator(TEST, seed))  # enough tokens for precise means
        runs.append({**run, **_selection(model, tokens)})
    return {
        "parameters": sum(values.numel() for values in models[0].parameters()),
        "limit": chosen.limit(process).risk(process),
        "runs": runs,
    }


def _mean(errors: Tensor) -> dict[str, float]:
    return {"mean": float(errors.mean()), "error": float(errors.std() / len(errors) ** 0.5)}


@torch.no_grad()
def _selection(model: Denoiser, tokens: Tensor) -> dict[str, float]:
    clean, weights = tokens[..., -2] > 0, model.map(tokens)
    tau = model.value_temperatures(tokens).expand_as(weights)
    return {
        "noise_weight": float((weights * ~clean).sum(-1).mean()),
        "tau_clean": float(tau[clean].mean()),
        "tau_noise": float(tau[~clean].mean()),
    }
