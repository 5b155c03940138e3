"""Perplexity by length of the input, up to and beyond that of training: where position-aware temperatures matter."""

from __future__ import annotations

import math
from typing import Any

from ssa.errors import UserError
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.windows import stream_windows
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Metric, Outcome
from ssa.evaluation.tasks.corpora import load_text, text_settings

_SHARES = (0.25, 0.5, 1, 2, 4)  # of the context
_TAIL = 4  # the last quarter of a window is looked at on its own


class Length:
    """The same text in consecutive windows of several lengths.

    ``perplexity/N`` is over all tokens of windows of N; ``tail_perplexity/N`` over the last quarter of each full
    window, tokens that have seen at least 3 N / 4 others (fewer where attention restarts at each document).
    """

    name = "length"
    has_files = False

    def __init__(self, settings: EvaluateSettings, evaluated: EvaluatedModel) -> None:
        limit = evaluated.model_config.max_positions
        lengths = settings.lengths or [
            max(_TAIL, int(share * evaluated.context_length))
            for share in _SHARES
            if evaluated.model_config.positions != "learned" or share * evaluated.context_length <= limit
        ]
        for length in lengths:
            evaluated.check_length("lengths", length)
            if length < _TAIL:
                raise UserError(f"lengths={length}: valid: at least {_TAIL}")
        self._asked, self._lengths = settings, sorted(set(lengths))
        self.settings: dict[str, Any] = {
            **text_settings(settings, evaluated),
            "lengths": self._lengths,
        }

    def run(self, context: EvaluationContext) -> Outcome:
        """A row for each length."""
        evaluated = context.evaluated
        text = load_text(self._asked, evaluated)
        ids = text.stream(evaluated.tokenizer).tokens.tolist()
        fitting = [length for length in self._lengths if length < len(ids)]
        if not fitting or (self._asked.lengths and fitting != self._lengths):
            raise UserError(f"lengths={self._lengths[-1]}: text={text.name} has {len(ids)} tokens; valid: below that")
        metrics: dict[str, Metric] = {}
        rows = []
        for length in fitting:
            windows = list(stream_windows(ids, length, length, evaluated.restart_at))
            scores = iter(context.score([request for window in windows for request in window], max_length=length))
            losses = [[value for _ in window for value in next(scores).logprobs] for window in windows]
            tails = [values[-(length // _TAIL) :] for values in losses if len(values) == length]
            loss, tail = _mean(losses), _mean(tails)
            metrics[f"perplexity/{length}"] = Metric(math.exp(loss), higher_is_better=False)
            if tails:
                metrics[f"tail_perplexity/{length}"] = Metric(math.exp(tail), higher_is_better=False)
            rows.append({"length": length, "loss": loss, "tail_loss": tail, "windows": len(windows)})
        return Outcome(
            metrics,
            n=text.counts["documents"],
            counts={"tokens": len(ids) - 1, **text.counts},
            details={"rows": rows, "trained_at": evaluated.trained_at},
            versions={"text": text.hash},
        )


def _mean(logprobs: list[list[float]]) -> float:
    """Of the loss a token, in nats."""
    values = [value for window in logprobs for value in window]
    return -math.fsum(values) / len(values) if values else math.nan
