"""Perplexity by input length, up to and beyond the training length, where position-aware temperatures matter."""

from __future__ import annotations

import math
from typing import Any

from ssa.errors import UserError
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel, check_length
from ssa.evaluation.scoring.windows import stream_windows
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Metric, Outcome
from ssa.evaluation.tasks.corpora import load_text, text_settings
from ssa.perplexity import exp_or_inf

_FRACTIONS = (0.25, 0.5, 1, 2, 4)  # of the context
_TAIL = 4  # the tail is the last quarter of a window


class Length:
    """One text in consecutive windows of several lengths.

    ``perplexity/N`` covers all tokens in windows of N; ``tail_perplexity/N`` the last quarter of full windows, where
    tokens see at least 3 N / 4 others (fewer if attention restarts at each document); ``tail_loss/2x`` is its logarithm
    at twice the training length, nats per token.
    """

    name = "length"
    has_files = False

    def __init__(self, settings: EvaluateSettings, evaluated: EvaluatedModel) -> None:
        usual = [max(_TAIL, int(fraction * evaluated.context_length)) for fraction in _FRACTIONS]
        lengths = settings.lengths or evaluated.within_positions(self.name, usual)
        for length in lengths:
            check_length(evaluated.model_config, "lengths", length)
        self._evaluate_settings, self._lengths = settings, sorted(set(lengths))
        self.settings: dict[str, Any] = {**text_settings(settings, evaluated), "lengths": self._lengths}

    def run(self, context: EvaluationContext) -> Outcome:
        evaluated = context.evaluated
        text = load_text(self._evaluate_settings, evaluated)
        ids = text.stream(evaluated.tokenizer).tokens.tolist()
        fitting = [length for length in self._lengths if length < len(ids)]
        if not fitting or (self._evaluate_settings.lengths and fitting != self._lengths):
            raise UserError(f"lengths={self._lengths[-1]}: text={text.name} has only {len(ids)} tokens; valid: fewer")
        metrics: dict[str, Metric] = {}
        rows = []
        for length in fitting:
            windows = list(stream_windows(ids, length, length, evaluated.restart_at))
            scored = context.score_units(windows, length)
            logprobs = [[value for score in scores for value in score.logprobs] for scores in scored]
            tails = [values[-(length // _TAIL) :] for values in logprobs if len(values) == length]
            loss, tail = _mean(logprobs), _mean(tails)
            metrics[f"perplexity/{length}"] = Metric(exp_or_inf(loss), higher_is_better=False)
            if tails:
                metrics[f"tail_perplexity/{length}"] = Metric(exp_or_inf(tail), higher_is_better=False)
                if multiple := evaluated.multiple_of_training(length):
                    metrics[f"tail_loss/{multiple}"] = Metric(tail, higher_is_better=False)
            rows.append({"length": length, "loss": loss, "tail_loss": tail, "windows": len(windows)})
        return Outcome(
            metrics,
            n=text.counts["documents"],
            counts={"tokens": len(ids) - 1, **text.counts},
            details={"rows": rows, "trained_at": evaluated.trained_at},
            versions={"text": text.hash},
        )


def _mean(logprobs: list[list[float]]) -> float:
    """Mean loss per token, in nats."""
    values = [value for window in logprobs for value in window]
    return -math.fsum(values) / len(values) if values else math.nan
