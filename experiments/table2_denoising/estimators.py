"""What is computed for a cell of the grid: fixed estimators, and denoisers trained for all seeds at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssa.theory.denoising import DATA, FIXED, METHODS, ROWS, TEST, Denoiser, Task, bayes, simulate
from ssa.theory.ensemble import CHUNK, train
from ssa.theory.streams import generator


def fixed(*, task: dict[str, Any], contexts: int, seeds: int) -> dict[str, dict[str, float]]:
    """The estimators that nobody trains, by name: ``closed`` risk, Monte-Carlo ``mean`` and its standard ``error``.

    Args:
        task: the values of a `Task`.
        contexts, seeds: all contexts that `learn` tests with.
    """
    process = Task(**task)
    estimators = {name: build(process) for name, build in FIXED.items()}
    errors = torch.cat([simulate(process, list(estimators.values()), contexts, seed) for seed in range(seeds)], dim=-1)
    return {
        name: {"closed": estimator.risk(process), **_mean(errors[row])}
        for row, (name, estimator) in enumerate(estimators.items())
    }


def learn(
    *, task: dict[str, Any], method: str, lr: float, steps: int, batch: int, contexts: int, seeds: int, vectorized: bool
) -> dict[str, Any]:
    """Trains a method for seeds 0, 1, ..., and tests it beside Bayes.

    A seed's test is of its own, and the same for all methods: an interval over seeds then holds the luck of the test
    too, and at equal seed most of that luck cancels.

    Args:
        task: the values of a `Task`.
        method: one of `METHODS`; data and initial matrices of a seed are the same for all of them.
        lr, steps, vectorized: of `train`.
        batch: contexts of a step, all of them fresh.
        contexts: of the test of a seed.
        seeds: how many.

    Returns:
        ``parameters`` of the model; ``limit``, the closed risk of the method's limit; ``runs``, for each seed: the
        test's ``mse``, its ``excess`` over Bayes with that one's standard ``error`` over contexts, ``noise_weight``,
        the weight p that noise tokens get in all, and the mean value temperature of clean and of noise tokens,
        ``tau_clean`` and ``tau_noise`` (nan where there are no such tokens).
    """
    process, chosen = Task(**task), METHODS[method]
    models = [Denoiser(process, chosen, seed) for seed in range(seeds)]

    def draw(seed: int, chunk: int) -> tuple[Tensor, Tensor]:
        tokens, signal = process.draw(CHUNK * batch, generator(DATA, seed, chunk))
        return tokens.reshape(CHUNK, batch, *tokens.shape[1:]), signal.reshape(CHUNK, batch, -1)

    train(models, draw, steps=steps, lr=lr, vectorized=vectorized)
    runs = []
    for seed, model in enumerate(models):
        optimal, error = simulate(process, [bayes(process), model.denoise], contexts, seed)
        excess = _mean(error - optimal)
        run = {"mse": float(error.mean()), "excess": excess["mean"], "error": excess["error"]}
        tokens, _ = process.draw(ROWS, generator(TEST, seed))  # of so many, means are sure enough
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
    """How a model tells noise from signal."""
    clean, weights = tokens[..., -2] > 0, model.map(tokens)
    tau = model.value_temperatures(tokens).expand_as(weights)
    return {
        "noise_weight": float((weights * ~clean).sum(-1).mean()),
        "tau_clean": float(tau[clean].mean()),
        "tau_noise": float(tau[~clean].mean()),
    }
