"""Passkey retrieval: accuracy by length and depth (arXiv 2411.12892, table 4); texts: `ssa.text.sources.passkey`."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from ssa.errors import UserError
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel, check_length
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Metric, Outcome
from ssa.statistics import wilson
from ssa.text.sources.passkey import KEYS, PassKeyPrompts, PassKeyText
from ssa.viz import plot_style

_FRACTIONS = (0.25, 0.5, 0.75, 1, 1.5, 2)  # of the context


class Passkey:
    """A grid of lengths and depths with ``trials`` keys per cell.

    A trial succeeds if the greedy continuation, ignoring white space, begins with the key and no sixth digit.  Accuracy
    is reported overall, by length (``accuracy/LENGTH``; ``accuracy/2x``: at twice the training length), by depth and by
    cell, with 95% Wilson intervals, as trials are independent draws.
    """

    name = "passkey"
    has_files = True

    def __init__(self, settings: EvaluateSettings, evaluated: EvaluatedModel) -> None:
        encode, model = evaluated.tokenizer.encode_batch, evaluated.model_config
        answers = [len(ids) for ids in encode([f" {key}" for key in KEYS])]
        self._new_tokens = max(answers) + 1  # to catch a sixth digit
        most = model.max_positions - self._new_tokens + min(answers) if model.positions == "learned" else None
        self._prompts = PassKeyPrompts(lambda text: 1 + len(encode([text])[0]), most)
        shortest = self._prompts.shortest
        if most is not None and most < shortest:
            raise UserError(f"tasks={self.name}: the model's {model.max_positions} positions are too few for a passkey")
        usual = [int(fraction * evaluated.context_length) for fraction in _FRACTIONS]
        usual = [length for length in usual if length >= shortest] or [evaluated.context_length]
        lengths = settings.lengths or evaluated.within_positions(self.name, usual)
        for length in lengths:
            check_length(model, "lengths", length)
            if length < shortest:
                raise UserError(f"lengths={length}: too short for a passkey; valid: at least {shortest}")
        grid = {"lengths": sorted(set(lengths)), "depths": sorted(set(settings.depths))}
        self.settings: dict[str, Any] = {**grid, "trials": settings.trials, "seed": settings.seed}

    def run(self, context: EvaluationContext) -> Outcome:
        chosen = self.settings
        cells = [(length, depth) for length in chosen["lengths"] for depth in chosen["depths"]]
        trials = [(cell, trial) for cell in range(len(cells)) for trial in range(chosen["trials"])]
        texts = [self._prompts.text(*cells[cell], f"{chosen['seed']} {trial}") for cell, trial in trials]
        answers = self._answers(context, texts)
        successes = [first_number(answer) == text.key for answer, text in zip(answers, texts, strict=True)]
        grid = np.array(successes).reshape(len(chosen["lengths"]), len(chosen["depths"]), chosen["trials"])
        metrics = {"accuracy": _accuracy(grid)}
        for length, hits in zip(chosen["lengths"], grid, strict=True):
            metrics[f"accuracy/{length}"] = _accuracy(hits)
            if multiple := context.evaluated.multiple_of_training(length):
                metrics[f"accuracy/{multiple}"] = _accuracy(hits)
        by_depth = [{"depth": depth, **_row(grid[:, column])} for column, depth in enumerate(chosen["depths"])]
        by_cell = [
            {"length": length, "depth": depth, **_row(hits)}
            for (length, depth), hits in zip(cells, grid.reshape(len(cells), -1), strict=True)
        ]
        self._plot(grid.mean(-1), context)
        details = {"depths": by_depth, "cells": by_cell, "trained_at": context.evaluated.trained_at}
        return Outcome(metrics, n=len(trials), details=details)

    def _answers(self, context: EvaluationContext, texts: list[PassKeyText]) -> list[str]:
        """The model's continuation of each prompt."""
        tokenizer = context.evaluated.tokenizer
        prompts = [[context.evaluated.prefix, *ids] for ids in tokenizer.encode_batch([text.prompt for text in texts])]
        new = context.generate(prompts, self._new_tokens, stop={tokenizer.end_of_text})
        return [tokenizer.decode(ids) for ids in new]

    def _plot(self, accuracy: npt.NDArray[Any], context: EvaluationContext) -> None:
        if not plot_style.available():
            print(f"passkey: no heat map without matplotlib; {plot_style.INSTALL}, then rerun=true", flush=True)
            return
        lengths, depths = self.settings["lengths"], self.settings["depths"]
        context.journal.begin_files()
        with plot_style.figure(1.6 + 0.7 * len(lengths), 1.6 + 0.4 * len(depths)) as figure:
            axes = figure.add_subplot()
            plot_style.heat_map(axes, accuracy.T, rows=depths, columns=lengths, label="accuracy", low=0, high=1)
            title = f"Passkey retrieval, trained at {context.evaluated.trained_at} tokens"
            axes.set(title=title, xlabel="length (tokens)", ylabel="depth of the key")
            plot_style.save(figure, context.folder / self.name)


def first_number(text: str) -> str:
    """The digits at the start of a text, after white space; empty if there are none."""
    found = re.match(r"\s*(\d+)", text)
    return found[1] if found else ""


def _accuracy(hits: npt.NDArray[Any]) -> Metric:
    low, high = wilson(int(hits.sum()), hits.size)
    return Metric(float(hits.mean()), low=low, high=high, higher_is_better=True)


def _row(hits: npt.NDArray[Any]) -> dict[str, Any]:
    accuracy = _accuracy(hits)
    counts = {"successes": int(hits.sum()), "n": hits.size}
    return {**counts, "accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high}
